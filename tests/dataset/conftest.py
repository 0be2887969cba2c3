"""Fixtures of the data tests."""

from pathlib import Path

import pytest

from tests.dataset.raw_files import RawFiles


@pytest.fixture
def raw(tmp_path: Path) -> RawFiles:
    """A folder to write raw files into and to merge them in."""
    return RawFiles(tmp_path)
