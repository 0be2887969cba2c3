"""Atomic writes: to a temporary file or folder next to the target, which is then renamed. No reader sees an incomplete file.

A disk that is full while a file is written becomes one sentence with the file's name.
"""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import TesseraError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_DISK_FULL_TEXT = re.compile(
    f"No space left on device|Disk quota exceeded|(?:os error|errno) (?:{'|'.join(map(str, sorted(_DISK_FULL)))})\\b", re.IGNORECASE
)
_FULL_BELOW_BYTES = 1 << 16
"""With less free space, an error without any reason while a file is written is taken for a full disk (torch's writer gives none)."""

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}(\..*)?")


def disk_full_reason(error: BaseException) -> str | None:
    """The system's message when an exception, or one that it was raised from, says that the disk or a quota is full; else None.

    Libraries in other languages put the system's message into exceptions of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_FULL:
            return os.strerror(seen.errno)
        if not isinstance(seen, TesseraError) and _DISK_FULL_TEXT.search(str(seen)):
            return os.strerror(errno.ENOSPC)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk while `path` is written into a TesseraError that names it."""
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:
        reason = disk_full_reason(error)
        if reason is None and isinstance(error, RuntimeError) and free_bytes(path) < _FULL_BELOW_BYTES:
            reason = os.strerror(errno.ENOSPC)
        if reason is None:
            raise
        raise TesseraError(f"{path}: cannot be written: {reason} ({free_bytes(path):,} bytes are free there)") from error


def free_bytes(path: Path) -> int:
    """Free space of the file system that a file or folder, which need not exist yet, is on."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that killed writers have left in a folder; only where no other process writes."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY_NAME.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def temporary_path(path: Path) -> Path:
    """Where the content of `path` is written before it is renamed; `remove_leftovers` deletes it after a crash."""
    # The suffix comes last: matplotlib and others derive the file format from it.
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. On success it is renamed to `path`, on failure it is deleted."""
    temp_path = temporary_path(path)
    try:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temp_path
            temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder next to `path`. On success it replaces `path`, on failure it is deleted."""
    temp_path = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    backup = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        with naming_full_disk(path):
            temp_path.mkdir(parents=True)
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
