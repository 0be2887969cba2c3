"""Check the image files of a merge: read, hash and decode each once, in several processes, and cache the results."""

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
from cpu_cores import available_cores
from dataset.loading.image_io import ImageError, measure_image, read_image_file
from dataset.record_validation import DropReason
from errors import TesseraError
from progress import track

MIN_IMAGES_FOR_POOL = 256
"""Smallest number of images for which starting worker processes is faster."""

_CHUNK = 32


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
"""File name of the cache under schema version 1."""


class ImageCheckCache:
    """Check results of earlier merges in one Parquet file, keyed by path and valid for one size and modification time.

    Raises TesseraError when the file cannot be read.
    """

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
        """The cached result for a file in this state, None when it must be checked.

        Args:
            path: Path of the image file.
            size: Present size in bytes.
            mtime: Present modification time in ns.
            max_pixels: Pixel limit of this merge.
        """
        cached = self._entries.get(_absolute(path))
        if cached is None or (cached.size, cached.mtime) != (size, mtime):
            return None
        # The pixel limit may have changed; images above the old limit were not decoded.
        recheck = cached.reason == DropReason.TOO_MANY_PIXELS or cached.width * cached.height > max_pixels
        return None if recheck else replace(cached, path=path)

    def save(self, checks: Iterable[ImageCheck | None]) -> None:
        """Add results and rewrite the file. None and results of missing files are skipped."""
        for check in checks:
            if check is not None and check.size >= 0:
                self._entries[_absolute(check.path)] = check
        rows = [(path, *astuple(check)[1:]) for path, check in self._entries.items()]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
        with atomic_write(self.file) as temp_path:
            pq.write_table(pa.table([list(column) for column in columns], schema=_SCHEMA), temp_path)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - Path.resolve would follow links and is slow


def check_images(paths: Sequence[str], cache: ImageCheckCache, max_pixels: int, workers: int | None = None) -> list[ImageCheck]:
    """Check image files and cache the results, also those obtained before an interruption.

    Args:
        paths: Image files.
        cache: Results of earlier merges; only files without a valid entry are read.
        max_pixels: Images with more pixels are rejected before decoding.
        workers: Worker processes; one per available core by default.

    Returns:
        One result per path, in the same order.
    """
    checks: list[ImageCheck | None] = []
    for path in paths:
        size, mtime = size_and_mtime(path)
        checks.append(cache.get(path, size, mtime, max_pixels) if size >= 0 else _missing(path))
    uncached = [i for i, check in enumerate(checks) if check is None]
    if uncached:
        results = _check_all([paths[i] for i in uncached], max_pixels, workers or available_cores())
        try:
            for i, check in zip(uncached, track(results, "checking images", len(uncached), "images"), strict=True):
                checks[i] = check
        finally:
            cache.save(checks[i] for i in uncached)
    return [check for check in checks if check is not None]


def size_and_mtime(path: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file; both -1 when it is missing or not a regular file."""
    try:
        stats = os.stat(path)  # noqa: PTH116 - ten times as fast as Path.stat, for hundreds of thousands of files
    except (OSError, ValueError):
        return -1, -1
    return (stats.st_size, stats.st_mtime_ns) if stat.S_ISREG(stats.st_mode) else (-1, -1)


def _check_all(paths: Sequence[str], max_pixels: int, workers: int) -> Iterator[ImageCheck]:
    check = partial(_check, max_pixels=max_pixels)
    if workers == 1 or len(paths) < MIN_IMAGES_FOR_POOL:
        yield from map(check, paths)
        return
    # Spawn, not fork: Arrow's threads are already running.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _init_worker) as pool:
        try:
            yield from pool.map(check, paths, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise TesseraError(
                "a worker process that checks images was killed, possibly for lack of memory (data.workers: 1 needs less)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    # The main process handles interrupts. Decoder warnings are not printed; errors become reasons in the report.
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
