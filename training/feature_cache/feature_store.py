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

from atomic_io import replacing
from errors import TesseraError

BYTES_A_SHARD = 256 * 2**20
PICTURES_A_SHARD = 1024
"""A shard ends with whichever comes first: what is lost when a run is killed is one shard of work."""

_LENGTH_BYTES = 8
_BYTES_A_VALUE = 2
_NAME_LENGTH = 16


class FeatureCache:
    """The shards in one folder. shape: patches and width of a picture's features."""

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        self._places: dict[str, tuple[Path, int]] = {}
        self._read: set[str] = set()

    @property
    def bytes_a_picture(self) -> int:
        """Room that a picture's features take on disk."""
        return self.shape[0] * self.shape[1] * _BYTES_A_VALUE

    def refresh(self) -> None:
        """Take note of shards that have come. Raises TesseraError when one is damaged."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path.name not in self._read:
                self._read.add(path.name)
                self._places |= self._contents(path)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of which nothing is known yet, each once."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._places]

    def shards(self, digests: Sequence[str]) -> list[list[str]]:
        """Pictures in the groups that they are written in: the same for the same pictures, whatever is there already."""
        size = max(1, min(PICTURES_A_SHARD, BYTES_A_SHARD // self.bytes_a_picture))
        once = list(dict.fromkeys(digests))
        return [once[start : start + size] for start in range(0, len(once), size)]

    def remove_left_overs(self) -> None:
        """Delete what killed processes have left half-written."""
        for path in self.folder.glob(".*.safetensors"):
            with self._locked(path.name[1 : 1 + _NAME_LENGTH], wait=False) as nobody_writes:
                if nobody_writes:
                    path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, shard: Sequence[str], wait: bool) -> Iterator[bool]:
        """Inside, no other process works on this shard; False where another one does and `wait` is off."""
        with self._locked(_name(shard), wait) as mine:
            yield mine

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
        data = save({"features": features.to(torch.bfloat16).contiguous()}, metadata={"pictures": " ".join(digests)})
        with replacing(path) as beside:
            beside.write_bytes(data)
        self.refresh()

    def read(self, digests: Sequence[str]) -> torch.Tensor:
        """Features [pictures, patches, width] in bf16. Raises TesseraError when a shard has gone."""
        features = torch.empty(len(digests), *self.shape, dtype=torch.bfloat16)
        for picture, digest in zip(features, digests, strict=True):
            path, offset = self._places[digest]
            room = memoryview(picture.flatten().view(torch.uint8).numpy())
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    whole = file.readinto(room) == len(room)
            except OSError as error:
                raise TesseraError(f"{path}: kept features cannot be read ({error.strerror}); start again to compute them anew") from error
            if not whole:
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
                digests, tensor = header["__metadata__"]["pictures"].split(), header["features"]
            except (ValueError, KeyError) as error:
                raise _damaged(path) from error
        begin, size = _LENGTH_BYTES + length, len(digests) * self.bytes_a_picture
        wanted = {"dtype": "BF16", "shape": [len(digests), *self.shape], "data_offsets": [0, size]}
        if tensor != wanted or path.stat().st_size != begin + size:
            raise _damaged(path)
        return {digest: (path, begin + i * self.bytes_a_picture) for i, digest in enumerate(digests)}


def _name(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:_NAME_LENGTH]


def _damaged(path: Path) -> TesseraError:
    return TesseraError(f"{path}: not a whole shard of features; delete it, and it will be computed again")
