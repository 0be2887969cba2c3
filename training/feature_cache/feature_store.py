"""Vision features on disk, in bf16: keyed by image content, written once, read one image at a time.

A shard is a safetensors file with `features` [N, P, D] and, in its metadata, the SHA-256 of each image file. Shards never change;
several processes and several runs may read and write one folder at the same time.
Shapes: N images, P patches, D hidden size of the vision encoder.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save

from atomic_io import atomic_write
from errors import TesseraError

MAX_SHARD_BYTES = 256 * 2**20
MAX_SHARD_IMAGES = 1024
"""A shard ends at whichever limit it reaches first. A killed run loses the work of one shard."""

_LENGTH_BYTES = 8
_BYTES_PER_VALUE = 2
_NAME_LENGTH = 16


class FeatureCache:
    """The shards in one folder. shape: [P, D] of one image's features."""

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        self._offsets: dict[str, tuple[Path, int]] = {}
        self._read_shards: set[str] = set()

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's features on disk."""
        return self.shape[0] * self.shape[1] * _BYTES_PER_VALUE

    def refresh(self) -> None:
        """Index shards that were added since the last call. Raises TesseraError when one is damaged."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name not in self._read_shards:
                self._read_shards.add(path.name)
                self._offsets |= self._contents(path)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Digests without indexed features, without duplicates."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._offsets]

    def shards(self, digests: Sequence[str]) -> list[list[str]]:
        """Images grouped into shards. The grouping depends only on the images, not on what is cached already."""
        size = max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // self.bytes_per_image))
        unique_digests = list(dict.fromkeys(digests))
        return [unique_digests[start : start + size] for start in range(0, len(unique_digests), size)]

    def remove_partial_files(self) -> None:
        """Delete incomplete shards that killed processes left."""
        for path in self.folder.glob(".*.safetensors"):
            with self._locked(path.name[1 : 1 + _NAME_LENGTH], wait=False) as is_unlocked:
                if is_unlocked:
                    path.unlink(missing_ok=True)

    def lock_shard(self, shard: Sequence[str], wait: bool) -> AbstractContextManager[bool]:
        """Lock a shard against other processes. Yields False when another process holds the lock and `wait` is off."""
        return self._locked(_name(shard), wait)

    @contextmanager
    def _locked(self, name: str, wait: bool) -> Iterator[bool]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / name)
        with suppress(Timeout):
            lock.acquire(blocking=wait)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def write(self, shard: Sequence[str], digests: Sequence[str], features: torch.Tensor) -> None:
        """Write features [N, P, D] of `digests`, a subset of `shard`, which must be locked."""
        path = self.folder / f"{_name(shard)}-{_name(digests)}.safetensors"
        data = save({"features": features.to(torch.bfloat16).contiguous()}, metadata={"images": " ".join(digests)})
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(data)
        self.refresh()

    def read(self, digests: Sequence[str]) -> torch.Tensor:
        """Features bf16 [N, P, D]. Raises TesseraError when a shard cannot be read."""
        features = torch.empty(len(digests), *self.shape, dtype=torch.bfloat16)
        for image, digest in zip(features, digests, strict=True):
            path, offset = self._offsets[digest]
            buffer = memoryview(image.flatten().view(torch.uint8).numpy())
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    complete = file.readinto(buffer) == len(buffer)
            except OSError as error:
                raise TesseraError(f"{path}: cached features cannot be read ({error.strerror}); restart to compute them again") from error
            if not complete:
                raise _damaged(path)
        return features

    def _contents(self, path: Path) -> dict[str, tuple[Path, int]]:
        """Path and byte offset of each image's features in a shard. Raises TesseraError when the shard is damaged."""
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
    """Digests of the images in a shard; shards of schema version 1 call them pictures."""
    return (metadata["images"] if "images" in metadata else metadata["pictures"]).split()


def _name(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:_NAME_LENGTH]


def _damaged(path: Path) -> TesseraError:
    return TesseraError(f"{path}: incomplete or damaged shard of features; delete it, and it will be computed again")
