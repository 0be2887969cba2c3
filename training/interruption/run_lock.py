"""One training at a time in a checkpoint folder: a lock that the system releases when its process ends, however it ends."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from errors import UsageError

LOCK_FILE = ".training.lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint folder, which is created; the file with the holder's process id and host is removed at the end.

    Raises UsageError naming the process that holds it. Where the file system has no locks, a line says so and nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    descriptor = _locked(path)
    try:
        if descriptor is not None:
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if descriptor is not None:
            _remove(path, descriptor)
        if not any(folder.iterdir()):
            folder.rmdir()


def _locked(path: Path) -> int | None:
    """An open, locked file; None where the file system has no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UsageError(f"{path.parent}: {holder} is training here; wait until it ends, or choose another name") from error
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            print(f"{path}: this file system has no locks ({error.strerror}): nothing keeps a second training out", flush=True)
            return None
        if _is_current(descriptor, path):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)  # its holder removed it in between


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


if sys.platform == "win32":
    import msvcrt

    def _remove(path: Path, descriptor: int) -> None:
        os.close(descriptor)  # an open file cannot be removed
        path.unlink(missing_ok=True)

    def _lock(descriptor: int) -> None:
        # Far behind the text, so that others can read who holds the lock.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _remove(path: Path, descriptor: int) -> None:
        path.unlink(missing_ok=True)
        os.close(descriptor)

    def _lock(descriptor: int) -> None:
        # Of the process, unlike flock: a DataLoader worker that outlives a killed run for a moment does not hold it.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
