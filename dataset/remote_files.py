"""Files in object storage (s3://, gs://, hf:// and every other protocol of fsspec): one place tells them from local ones.

A local path is a `pathlib.Path` and is used without fsspec, which is imported with the first URL that is opened. A URL is a `RemotePath`,
which has those methods of a path that the sources need; `Path` itself would make one slash of the two in s3://. Not universal_pathlib:
whatever it offers goes through the same fsspec calls, and what is needed beyond them, states of many files by one listing and errors in one
sentence, it does not have.
"""

import errno
import hashlib
import io
import os
import posixpath
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.object_storage import StorageError, name_in, protocol_of, storage_of

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://(?=.)", re.DOTALL)

LISTED_FROM = 8
"""Number of files of one folder from which on it is listed, instead of asking for each of them: a request gives 1,000 entries."""

RETRY_SECONDS = (0.5, 2.0)
"""Waiting times before a part of a file is asked for once more: of a large file a connection may break."""

BLOCK_BYTES = 8 << 20
"""Bytes that are fetched at once from a file that is read in order."""

_VERSION_KEYS = ("ETag", "etag", "blob_id", "md5Hash", "generation", "LastModified", "last_modified", "updated", "mtime", "created")
_PARALLEL_REQUESTS = 16
_MAX_NAME_BYTES = 1024

RemoteState = tuple[int, int]
"""Size in bytes and a digest of the version (its ETag, else the time of modification), 63 bits; both are -1 when there is no such file."""

_MISSING: RemoteState = (-1, -1)


def is_url(value: object) -> bool:
    """Whether a path is a URL of fsspec; file:// is a local path."""
    return isinstance(value, str) and _URL.match(value) is not None and not value.startswith("file://")


def known_protocol(url: str) -> bool:
    """Whether fsspec knows the protocol of a URL."""
    from fsspec import available_protocols

    return RemotePath(url).protocol in available_protocols()


def parse_path(text: str) -> "FilePath":
    """A path or URL as it is written in a configuration or in images.parquet."""
    return RemotePath(text) if is_url(text) else Path(text.removeprefix("file://"))


class RemotePath:
    """A file or folder in object storage. No dataclass, which in a configuration is a section.

    Its methods raise StorageError when the storage cannot be used, else OSError as those of a local path do.
    """

    __slots__ = ("url",)

    def __init__(self, url: str):
        self.url = url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    @property
    def protocol(self) -> str:
        """The part before ://, in lower case."""
        return protocol_of(self.url)

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self.url.rstrip("/"))

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder; of a bucket the bucket itself."""
        protocol, _, key = self.url.rstrip("/").partition("://")
        return RemotePath(f"{protocol}://{posixpath.dirname(key) or key}")

    def __truediv__(self, name: str | PurePosixPath) -> "RemotePath":
        """A file below; `..` leads to the folder above, at most to the bucket."""
        protocol, _, key = self.url.rstrip("/").partition("://")
        bucket, _, folder = key.partition("/")
        relative = posixpath.normpath(str(name).lstrip("/"))
        if relative.startswith(".."):
            return RemotePath(f"{protocol}://{bucket}{posixpath.normpath(posixpath.join('/', folder, relative))}")
        return RemotePath(f"{protocol}://{key}" if relative == "." else f"{protocol}://{key}/{relative}")

    def exists(self) -> bool:
        """Whether there is a file or folder of this name."""
        return self.problem() is None

    def problem(self, is_folder: bool = False) -> str | None:
        """Why there is no file or folder of this name; None if there is one. A folder that may not be listed is taken to be there."""
        try:
            with storage_of(self.url) as storage:
                storage.info(name_in(storage, self.url))
        except OSError as error:
            return None if is_folder and isinstance(error, PermissionError) else error.strerror
        return None

    def open(self) -> io.BufferedReader:
        """The file for reading bytes."""
        with storage_of(self.url) as storage:
            file = storage.open(name_in(storage, self.url), "rb", block_size=BLOCK_BYTES)
            if (getattr(file, "details", None) or {}).get("type") == "directory":
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.url)
            return io.BufferedReader(_Reader(self, file), 1 << 20)

    def read(self, max_bytes: int) -> bytes:
        """The first `max_bytes` of the file, in one request."""
        with storage_of(self.url) as storage:
            try:
                return bytes(storage.cat_file(name_in(storage, self.url), start=0, end=max_bytes))
            except OSError as error:
                # No range of an empty object can be satisfied (HTTP 416).
                if error.errno == errno.EINVAL and storage.info(name_in(storage, self.url))["size"] == 0:
                    return b""
                raise

    def size(self) -> int:
        """The number of bytes of the file."""
        with storage_of(self.url) as storage:
            return int(storage.info(name_in(storage, self.url))["size"])

    def glob(self) -> "list[RemotePath]":
        """The files and folders that match, if this is a pattern, by name."""
        with storage_of(self.url, is_listing=True) as storage:
            return sorted((_with_protocol(self.protocol, name) for name in storage.glob(name_in(storage, self.url))), key=str)

    def entries(self) -> dict[str, RemoteState | None] | None:
        """Name of each file in the folder -> its state; None for a folder. Empty if there is no such folder, None if the account may not
        list it."""
        try:
            with storage_of(self.url) as storage:
                name = name_in(storage, self.url)
                listed = {name_in(storage, entry["name"]): entry for entry in storage.ls(name, detail=True)}
        except FileNotFoundError:
            return {}
        except PermissionError:
            return None
        below = ((path.removeprefix(f"{name}/"), entry) for path, entry in listed.items() if path.startswith(f"{name}/"))
        return {path: _state(entry) if entry["type"] == "file" else None for path, entry in below if path}


FilePath = Path | RemotePath
"""A local path or a URL."""


def files_below(root: FilePath) -> list[PurePosixPath]:
    """The files of a folder and its subfolders, relative to it, by name."""
    if isinstance(root, Path):
        return sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file())
    with storage_of(root.url, is_listing=True) as storage:
        name = name_in(storage, root.url)
        found = [name_in(storage, path) for path in storage.find(name)]
    return sorted(PurePosixPath(path.removeprefix(f"{name}/")) for path in found if path.startswith(f"{name}/"))


def remote_states(urls: Iterable[str]) -> dict[str, RemoteState]:
    """The states of files, with one listing for the files of a folder. A URL with a slash at its end is a folder: the number of its
    entries, and a digest of their names."""
    states: dict[str, RemoteState] = {}
    by_folder: dict[RemotePath, list[RemotePath]] = defaultdict(list)
    for url in dict.fromkeys(urls):
        path = RemotePath(url)
        if url.endswith("/"):
            states[url] = _folder_state(path)
        else:
            by_folder[path.parent].append(path)
    single = [path for paths in by_folder.values() if len(paths) < LISTED_FROM for path in paths]
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        folders = [folder for folder, paths in by_folder.items() if len(paths) >= LISTED_FROM]
        listings = pool.map(RemotePath.entries, folders)
        for folder, entries in zip(folders, listings, strict=True):
            if entries is None:
                single += by_folder[folder]
            else:
                states |= {path.url: entries.get(path.name) or _MISSING for path in by_folder[folder]}
        states |= dict(zip((path.url for path in single), pool.map(_file_state, single), strict=True))
    return states


def _folder_state(folder: RemotePath) -> RemoteState:
    entries = folder.entries()
    return _MISSING if not entries else (len(entries), _digest("\n".join(sorted(entries))))


def _file_state(path: RemotePath) -> RemoteState:
    if "\0" in path.url or len(path.url.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        return _MISSING  # services answer such names with errors of other kinds
    try:
        with storage_of(path.url) as storage:
            entry = storage.info(name_in(storage, path.url))
    except OSError:
        return _MISSING
    return _state(entry) if entry["type"] == "file" else _MISSING


def _state(entry: dict[str, Any]) -> RemoteState:
    """The state of a file by its entry in a listing, whose keys differ from service to service."""
    version = next((entry[key] for key in _VERSION_KEYS if entry.get(key)), None)
    return int(entry["size"] or 0), _digest(str(version).strip('"'))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def _with_protocol(protocol: str, name: str) -> RemotePath:
    return RemotePath(name if is_url(name) else f"{protocol}://{name.lstrip('/')}")


class _Reader(io.RawIOBase):
    """A file of fsspec whose errors name it.

    Args:
        path: Its URL.
        file: The open file.
    """

    def __init__(self, path: RemotePath, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for wait in (*RETRY_SECONDS, None):
            try:
                with storage_of(self._path.url):
                    data = self._file.read(len(view))
                view[: len(data)] = data
                return len(data)
            except StorageError:
                if wait is None:
                    raise
                time.sleep(wait)
            except OSError as error:
                raise StorageError(f"{self._path}: can no longer be read ({error.strerror or error})") from error
        raise AssertionError(self._path)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
