"""Features of pictures on disk, in bf16: found by what a picture holds, written once, read a picture at a time.

A shard is a safetensors file with `features` [pictures, patches, width] and, in its metadata, the SHA-256 of each picture's
file. Shards never change; several processes and several runs may read and write one folder at the same time.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save

from atomic_io import atomic_write
from errors import TesseraError

MAX_SHARD_BYTES = 256 * 2**20
MAX_SHARD_IMAGES = 1024
"""A shard ends with whichever comes first: what is lost when a run is killed is one shard of work."""

_LENGTH_BYTES = 8
_BYTES_PER_VALUE = 2
_NAME_LENGTH = 16


class FeatureCache:
    """The shards in one folder. shape: patches and width of a picture's features."""

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        self._offsets: dict[str, tuple[Path, int]] = {}
        self._read_shards: set[str] = set()

    @property
    def bytes_per_image(self) -> int:
        """Room that a picture's features take on disk."""
        return self.shape[0] * self.shape[1] * _BYTES_PER_VALUE

    def refresh(self) -> None:
        """Take note of shards that have come. Raises TesseraError when one is damaged."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name not in self._read_shards:
                self._read_shards.add(path.name)
                self._offsets |= self._contents(path)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of which nothing is known yet, each once."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._offsets]

    def shards(self, digests: Sequence[str]) -> list[list[str]]:
        """Pictures in the groups that they are written in: the same for the same pictures, whatever is there already."""
        size = max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // self.bytes_per_image))
        unique_digests = list(dict.fromkeys(digests))
        return [unique_digests[start : start + size] for start in range(0, len(unique_digests), size)]

    def remove_partial_files(self) -> None:
        """Delete what killed processes have left half-written."""
        for path in self.folder.glob(".*.safetensors"):
            with self._locked(path.name[1 : 1 + _NAME_LENGTH], wait=False) as is_unlocked:
                if is_unlocked:
                    path.unlink(missing_ok=True)

    @contextmanager
    def lock_shard(self, shard: Sequence[str], wait: bool) -> Iterator[bool]:
        """Inside, no other process works on this shard; False where another one does and `wait` is off."""
        with self._locked(_name(shard), wait) as acquired:
            yield acquired

    @contextmanager
    def _locked(self, name: str, wait: bool) -> Iterator[bool]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / name)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def write(self, shard: Sequence[str], digests: Sequence[str], features: torch.Tensor) -> None:
        """Write features [pictures, patches, width] of `digests`, a part of the claimed `shard`."""
        path = self.folder / f"{_name(shard)}-{_name(digests)}.safetensors"
        data = save({"features": features.to(torch.bfloat16).contiguous()}, metadata={"images": " ".join(digests)})
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(data)
        self.refresh()

    def read(self, digests: Sequence[str]) -> torch.Tensor:
        """Features [pictures, patches, width] in bf16. Raises TesseraError when a shard has gone."""
        features = torch.empty(len(digests), *self.shape, dtype=torch.bfloat16)
        for image, digest in zip(features, digests, strict=True):
            path, offset = self._offsets[digest]
            buffer = memoryview(image.flatten().view(torch.uint8).numpy())
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    complete = file.readinto(buffer) == len(buffer)
            except OSError as error:
                raise TesseraError(f"{path}: kept features cannot be read ({error.strerror}); start again to compute them anew") from error
            if not complete:
                raise _damaged(path)
        return features

    def _contents(self, path: Path) -> dict[str, tuple[Path, int]]:
        """Where each picture of a shard begins."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > path.stat().st_size:
                raise _damaged(path)
            try:
                header: dict[str, Any] = json.loads(file.read(length))
                digests, tensor = _digests(header["__metadata__"]), header["features"]
            except (ValueError, KeyError) as error:
                raise _damaged(path) from error
        begin, size = _LENGTH_BYTES + length, len(digests) * self.bytes_per_image
        expected = {"dtype": "BF16", "shape": [len(digests), *self.shape], "data_offsets": [0, size]}
        if tensor != expected or path.stat().st_size != begin + size:
            raise _damaged(path)
        return {digest: (path, begin + i * self.bytes_per_image) for i, digest in enumerate(digests)}


def _digests(metadata: dict[str, str]) -> list[str]:
    """Of the images in a shard; shards of schema version 1 call them pictures."""
    return (metadata["images"] if "images" in metadata else metadata["pictures"]).split()


def _name(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:_NAME_LENGTH]


def _damaged(path: Path) -> TesseraError:
    return TesseraError(f"{path}: not a whole shard of features; delete it, and it will be computed again")
