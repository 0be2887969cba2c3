"""Packs images into tar shards (see `dataset.loading.packed_images`), each of them once, by its content.

A shard is renamed into place when it is full or the last image was added; next to it lies its index, so that a later merge finds the
images of earlier ones. A finished shard never changes.
"""

import contextlib
import hashlib
import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import naming_full_disk, temporary_path
from dataset.loading.image_io import detect_format
from dataset.loading.packed_images import PackedImage
from errors import TesseraError

SHARD_BYTES = 1 << 30
"""Largest shard, unless one image alone is larger."""

_INDEX_SCHEMA = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
_SHARD_NAME = re.compile(r"images-(\d+)\.tar")
_BLOCK = 512
_END = bytes(2 * _BLOCK)


class ImageShards:
    """The shards of a folder. A context manager: add images inside; their locations are valid after it has ended.

    Args:
        folder: Where the shards are; created with the first image.
        shard_bytes: Size above which a new shard is begun.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES):
        self.folder, self.shard_bytes = folder, shard_bytes
        self._locations: dict[str, PackedImage] = {}
        self._next_number = 0
        for shard in sorted(folder.glob("images-*.tar")):
            if match := _SHARD_NAME.fullmatch(shard.name):
                self._next_number = max(self._next_number, int(match[1]) + 1)
                self._load_index(shard)
        self._file: BinaryIO | None = None
        self._temporary = self._shard = Path()
        self._unfinished: dict[str, str] = {}  # path -> key of the images of the shard that is being written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an error too: what was packed need not be packed again. A full disk is reported by the error itself.
        with contextlib.suppress(TesseraError) if kind is not None else contextlib.nullcontext():
            self._finish()

    def add(self, image: bytes, key: str | None = None) -> str:
        """Pack an image, unless it is packed already. Returns its path.

        Args:
            image: The encoded image.
            key: Its name in the shards; by default its SHA-256.
        """
        key = key or hashlib.sha256(image).hexdigest()
        if key not in self._locations:
            self._write(key, image)
        return str(self._locations[key])

    def find(self, key: str) -> str | None:
        """Path of the image with this name, if it is packed."""
        return str(self._locations[key]) if key in self._locations else None

    def unfinished(self, path: str) -> tuple[str, str]:
        """Where an image can be read as long as its shard is being written, and its key; both empty when it is in a finished one."""
        key, image = self._unfinished.get(path, ""), PackedImage.parse(path)
        if self._file is None or not key or image is None:
            return "", ""
        with naming_full_disk(self.folder):
            self._file.flush()
        return str(replace(image, shard=str(self._temporary))), key

    def _write(self, key: str, image: bytes) -> None:
        if self._file is not None and self._file.tell() + len(image) + 4 * _BLOCK > self.shard_bytes:
            self._finish()
        with naming_full_disk(self.folder):
            if self._file is None:
                self._begin()
            assert self._file is not None
            # An image of unknown format is packed too: the check of all images then reports it.
            suffix = (detect_format(image) or "bin").lower()
            member = tarfile.TarInfo(f"{key}.{'jpg' if suffix in ('jpeg', 'mpo') else suffix}")
            member.size = len(image)
            self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
            offset = self._file.tell()
            self._file.write(image)
            self._file.write(bytes(-len(image) % _BLOCK))
        location = self._locations[key] = PackedImage(str(self._shard), offset, len(image))
        self._unfinished[str(location)] = key

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shard = self.folder / f"images-{self._next_number:05d}.tar"
        self._next_number += 1
        self._temporary = temporary_path(self._shard)
        self._file = self._temporary.open("wb", buffering=io.DEFAULT_BUFFER_SIZE)
        self._unfinished = {}

    def _finish(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with naming_full_disk(self._shard), contextlib.closing(file):
            file.write(_END)
            file.flush()
            keys = list(self._unfinished.values())
            added = [self._locations[key] for key in keys]
            columns = [keys, [image.offset for image in added], [image.size for image in added]]
            pq.write_table(pa.table(columns, schema=_INDEX_SCHEMA), _index_of(self._shard))
            self._temporary.replace(self._shard)

    def _load_index(self, shard: Path) -> None:
        index = _index_of(shard)
        if not index.is_file():
            return
        for row in pq.read_table(index, schema=_INDEX_SCHEMA).to_pylist():
            self._locations[row["key"]] = PackedImage(str(shard), row["offset"], row["size"])


def _index_of(shard: Path) -> Path:
    return shard.with_suffix(".parquet")
