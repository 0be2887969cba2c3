"""Fixtures of the dataset tests."""

from pathlib import Path

import pytest

from dataset.loading.image_io import read_image_file
from dataset.remote_files import FilePath
from tests.dataset.raw_files import RawFiles


@pytest.fixture
def raw(tmp_path: Path) -> RawFiles:
    """A temporary folder for raw files and their merged data."""
    return RawFiles(tmp_path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the image files that a merge reads."""
    names: list[str] = []

    def record_and_read(path: FilePath, max_pixels: int) -> bytes:
        names.append(path.name)
        return read_image_file(path, max_pixels)

    monkeypatch.setattr("dataset.build.image_validation.read_image_file", record_and_read)
    return names
