"""Fixtures of the dataset tests."""

from pathlib import Path

import pytest

from tests.dataset.raw_files import RawFiles


@pytest.fixture
def raw(tmp_path: Path) -> RawFiles:
    """A temporary folder for raw files and their merged data."""
    return RawFiles(tmp_path)
