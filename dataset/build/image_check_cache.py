"""Results of checking image files, and the file that keeps them from one merge to the next."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import atomic_write
from dataset.build.fingerprint import FileState
from dataset.record_validation import DropReason
from dataset.remote_files import is_url
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Result of checking one image file.

    Args:
        path: Path as the source gives it.
        size: Bytes of the file when it was checked; -1 when it did not exist.
        mtime: Modification time in ns when it was checked; -1 when it did not exist.
        sha256: Digest of the file; empty when it could not be read.
        width: Pixels, upright; 0 when unknown.
        height: Pixels, upright; 0 when unknown.
        reason: A `DropReason`; empty when the image can be used.
        detail: Message that says what is wrong.
        perceptual_hash: See `perceptual_hash.appearance`; 0 when the image cannot be used.
        thumbnail: See `perceptual_hash.appearance`; empty when the image cannot be used.
        is_exact: Whether hash and thumbnail were made of all pixels (see `image_io.MeasuredImage`).
        pixels: Digest of size and pixels, upright RGB; empty where no other file looks the same, so that it need not be known.
        orientation: EXIF orientation of the stored image, 1 to 8; 1 when unknown.
    """

    path: str
    size: int
    mtime: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""
    perceptual_hash: int = 0
    thumbnail: bytes = b""
    is_exact: bool = False
    pixels: str = ""
    orientation: int = 1

    @property
    def content(self) -> str:
        """The same for all files with the same bytes and, after `hash_equal_candidates`, for all with the same pixels."""
        return self.pixels or self.sha256


_ARROW_TYPES: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), bytes: pa.binary(), bool: pa.bool_()}
_SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(ImageCheck)])


class ImageCheckCache:
    """Check results of earlier merges in one Parquet file, keyed by path and valid for one size and modification time.

    Raises TesseraError when the file cannot be read.
    """

    def __init__(self, file: Path, max_pixels: int):
        self.file, self.max_pixels = file, max_pixels
        # The name of schema version 1.
        if not file.is_file() and (earlier := file.with_name("pictures.parquet")).is_file():
            earlier.rename(file)
        self._entries: dict[str, ImageCheck] = {}
        if file.is_file():
            try:
                columns = pq.read_table(file, schema=_SCHEMA).to_pydict()
            except (pa.ArrowInvalid, OSError) as error:
                raise TesseraError(f"{file}: cannot be read ({' '.join(str(error).split())}); delete it") from error
            rows = zip(*(columns[name] for name in _SCHEMA.names), strict=True)
            # Without a thumbnail or an orientation: of an earlier version, which did not look for equal pixels or needed no orientation.
            self._entries = {row[0]: ImageCheck(*row) for row in rows if None not in row}

    def get(self, state: FileState) -> ImageCheck | None:
        """The result for a file in a state; None when it must be checked."""
        path, size, mtime = state
        cached = self._entries.get(_absolute(path))
        if cached is None or (cached.size, cached.mtime) != (size, mtime):
            return None
        # The pixel limit may have changed; images above the old limit were not decoded.
        recheck = cached.reason == DropReason.TOO_MANY_PIXELS or cached.width * cached.height > self.max_pixels
        return None if recheck else replace(cached, path=path)

    def save(self, checks: Iterable[ImageCheck]) -> None:
        """Add results and rewrite the file. Those of missing files are skipped."""
        self._entries |= {_absolute(check.path): check for check in checks if check.size >= 0}
        columns = [list(self._entries), *(list(map(attrgetter(name), self._entries.values())) for name in _SCHEMA.names[1:])]
        with atomic_write(self.file) as temp_path:
            pq.write_table(pa.table(columns, schema=_SCHEMA), temp_path)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links and is slow
