"""One training at a time in a checkpoint folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from file_lock import folder_lock

LOCK_FILE = ".training.lock"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint folder (see `folder_lock`). Raises UsageError naming the process that trains there."""
    with folder_lock(folder, LOCK_FILE, "training"):
        yield
