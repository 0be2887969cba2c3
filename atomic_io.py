"""Atomic writes: to a temporary file or folder next to the target, which is then renamed. No reader sees an incomplete file."""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. On success it is renamed to `path`, on failure it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix comes last: matplotlib and others derive the file format from it.
    temp_path = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temp_path
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder next to `path`. On success it replaces `path`, on failure it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temp_path.mkdir()
    backup = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        yield temp_path
        copy_read_permissions(temp_path)
        if path.exists():
            path.replace(backup)
        try:
            temp_path.replace(path)
        except OSError:
            if backup.exists():
                backup.replace(path)
            raise
        shutil.rmtree(backup, ignore_errors=True)
    finally:
        shutil.rmtree(temp_path, ignore_errors=True)


def copy_read_permissions(folder: Path) -> None:
    """Give all files below a folder the read permissions of the folder.

    safetensors creates files that only their owner can read.
    """
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | readers)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line endings, atomically."""
    with atomic_write(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON as unescaped UTF-8, indented by two spaces, atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
