"""Checking the picture files of a merge: each is read, hashed and decoded once, in several processes, and remembered."""

import hashlib
import multiprocessing
import os
import signal
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import atomic_write
from dataset.loading.image_io import ImageError, measure_image, read_image_file
from dataset.record_validation import DropReason
from errors import TesseraError
from progress import track

MIN_IMAGES_FOR_POOL = 256
"""From this many pictures on, starting processes pays."""

_CHUNK = 32


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What is known of a picture file. `reason` is empty where it can be used, else `detail` says what is wrong.

    size in bytes and mtime in ns are those of the file when it was checked; both -1 where there was none. width and
    height in pixels, upright; 0 where they were not found.
    """

    path: str
    size: int
    mtime: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""


_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


_EARLIER_NAME = "pictures.parquet"
"""What the cache was called under schema version 1."""


class ImageCheckCache:
    """What earlier merges found out, in one Parquet file; a picture is known by path, size and time of change."""

    def __init__(self, file: Path):
        self.file = file
        if not file.is_file() and (earlier := file.with_name(_EARLIER_NAME)).is_file():
            earlier.rename(file)
        self._entries: dict[str, ImageCheck] = {}
        if file.is_file():
            try:
                columns = pq.read_table(file, schema=_SCHEMA).to_pydict()
            except (pa.ArrowInvalid, OSError) as error:
                raise TesseraError(f"{file}: cannot be read ({' '.join(str(error).split())}); delete it") from error
            self._entries = {row[0]: ImageCheck(*row) for row in zip(*(columns[name] for name in _SCHEMA.names), strict=True)}

    def get(self, path: str, size: int, mtime: int, max_pixels: int) -> ImageCheck | None:
        """What is known of a file in this state under this limit; None where it has to be checked."""
        cached = self._entries.get(_absolute(path))
        if cached is None or (cached.size, cached.mtime) != (size, mtime):
            return None
        # The limit may be another today; what was over it has not been decoded.
        recheck = cached.reason == DropReason.TOO_MANY_PIXELS or cached.width * cached.height > max_pixels
        return None if recheck else replace(cached, path=path)

    def save(self, checked: Iterable[ImageCheck | None]) -> None:
        """Remember these too."""
        for check in checked:
            if check is not None and check.size >= 0:
                self._entries[_absolute(check.path)] = check
        rows = [(path, *astuple(check)[1:]) for path, check in self._entries.items()]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
        with atomic_write(self.file) as temp_path:
            pq.write_table(pa.table([list(column) for column in columns], schema=_SCHEMA), temp_path)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links, and is slow


def check_images(paths: Sequence[str], cache: ImageCheckCache, max_pixels: int, workers: int | None = None) -> list[ImageCheck]:
    """Check each file, those that `memory` does not know in `workers` processes, and remember them all.

    One result for each path, in their order. What has been checked is remembered even when the work is interrupted.
    """
    found: list[ImageCheck | None] = []
    for path in paths:
        size, mtime = size_and_mtime(path)
        found.append(cache.get(path, size, mtime, max_pixels) if size >= 0 else _missing(path))
    uncached = [i for i, checked in enumerate(found) if checked is None]
    if uncached:
        results = _check_all([paths[i] for i in uncached], max_pixels, workers or os.cpu_count() or 1)
        try:
            for i, checked in zip(uncached, track(results, "checking pictures", len(uncached), "pictures"), strict=True):
                found[i] = checked
        finally:
            cache.save(found[i] for i in uncached)
    return [checked for checked in found if checked is not None]


def size_and_mtime(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file; -1 for both where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - ten times as fast as Path.stat, for hundreds of thousands of files
    except (OSError, ValueError):
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, -1)


def _check_all(paths: Sequence[str], max_pixels: int, workers: int) -> Iterator[ImageCheck]:
    check = partial(_check, max_pixels=max_pixels)
    if workers == 1 or len(paths) < MIN_IMAGES_FOR_POOL:
        yield from map(check, paths)
        return
    # Spawned, not forked: Arrow's threads are running already.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker) as pool:
        try:
            yield from pool.map(check, paths, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise TesseraError(
                "a process that checks pictures was killed; was there not enough memory? (data.workers: 1 takes less)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    # An interruption is the main process's to handle; decoders' complaints end as reasons in the report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def _check(path: str, max_pixels: int) -> ImageCheck:
    size, mtime = size_and_mtime(path)
    sha256 = ""
    try:
        data = read_image_file(Path(path))
        sha256 = hashlib.sha256(data).hexdigest()
        width, height = measure_image(data, path, max_pixels)
    except ImageError as error:
        return ImageCheck(path, size, mtime, sha256, *error.size, reason=str(error.reason), detail=str(error))
    return ImageCheck(path, size, mtime, sha256, width, height)


def _missing(path: str) -> ImageCheck:
    return ImageCheck(path, -1, -1, reason=str(DropReason.MISSING_FILE), detail=f"{path}: there is no such file")
