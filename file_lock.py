"""A lock on a folder that the system releases when the process that holds it ends, however it ends."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from atomic_io import naming_full_disk
from errors import UsageError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks."""


@contextlib.contextmanager
def folder_lock(folder: Path, file_name: str, activity: str) -> Iterator[bool]:
    """Hold the lock of a folder, which is created; the file with the holder's process id and host is removed at the end.

    Yields whether it is locked: where the file system has no locks, a line says so and nothing is locked.
    Raises UsageError naming the process that holds it.

    Args:
        folder: The folder.
        file_name: Name of the lock's file in it.
        activity: What the holder does, such as "training", for the messages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    descriptor = _locked(path, activity)
    try:
        if descriptor is not None:
            with naming_full_disk(path):
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _remove(path, descriptor)
        if not any(folder.iterdir()):
            folder.rmdir()


def _locked(path: Path, activity: str) -> int | None:
    """An open, locked file; None where the file system has no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UsageError(f"{path.parent}: {holder} is {activity} here; wait until it ends, or choose another name") from error
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            print(f"{path}: this file system has no locks ({error.strerror}): nothing keeps a second {activity} out", flush=True)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)  # its holder removed it in between


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
