"""Images packed into tar shards: many images in one file, each read by its position, with one open file and one read.

The path of such an image is that of its shard with its position, `images-00000.tar#OFFSET+SIZE` in bytes. A shard is a plain tar
archive, whose members are named <sha256>.<extension>.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dataset.remote_files import FilePath, is_url

_LOCATION = re.compile(r"(?P<shard>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PackedImage:
    """Where an image is in a shard, in bytes."""

    shard: str
    offset: int
    size: int

    @classmethod
    def parse(cls, path: FilePath | str) -> Self | None:
        """The packed image that a path names; None if it is that of a file."""
        match = None if is_url(str(path)) else _LOCATION.fullmatch(str(path))
        return None if match is None else cls(match["shard"], int(match["offset"]), int(match["size"]))

    def __str__(self) -> str:
        return f"{self.shard}#{self.offset}+{self.size}"

    def read(self) -> bytes:
        """The bytes of the image. Raises OSError when the shard cannot be read or ends before them."""
        descriptor = os.open(self.shard, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            os.lseek(descriptor, self.offset, os.SEEK_SET)
            data = os.read(descriptor, self.size)
        finally:
            os.close(descriptor)
        if len(data) != self.size:
            raise OSError(f"{len(data):,} of {self.size:,} bytes at {self.offset:,}: the shard is truncated")
        return data


def file_of_image(path: Path | str) -> Path:
    """The local file that holds an image: its shard if it is packed, else the path itself."""
    packed = PackedImage.parse(path)
    return Path(path if packed is None else packed.shard)
