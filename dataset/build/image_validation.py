"""Check the image files of a merge: read, hash and decode each once, in several processes, and cache the results."""

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import atomic_write
from cpu_cores import available_cores
from dataset.build.fingerprint import FileState, file_states
from dataset.build.perceptual_hash import THUMBNAIL_BYTES, appearance, near_duplicates
from dataset.config import DataConfig
from dataset.loading.image_io import RETRY_SECONDS, ImageError, measure_image, open_image, read_image_file
from dataset.object_storage import StorageError
from dataset.record_validation import DropReason
from dataset.remote_files import is_url, parse_path, remote_states
from dataset.worker_pool import map_in_workers
from errors import TesseraError
from progress import track

MIN_IMAGES_FOR_POOL = 256
"""Smallest number of images for which starting worker processes is faster."""

_CHUNK = 32

_MAX_ROUNDING = {0: 0.25, 1: 2.0, 2: 0.0}
"""Largest mean difference of the thumbnails, 0..255, of files with the same pixels, by how many of the two are exact. JPEG is rounded
otherwise than PNG (measured: up to 0.7), and two JPEGs otherwise where one is stored rotated."""

_OTHER_FORM = "; there is one with this name in the other Unicode form, {}"

S = TypeVar("S")
T = TypeVar("T")


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
        """The result for a file in a state, also for a missing one; None when it must be checked."""
        path, size, mtime = state
        if size < 0:
            return _missing(path)
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


def check_images(paths: Sequence[str], cache_file: Path, config: DataConfig) -> tuple[list[ImageCheck], np.ndarray]:
    """Check image files, and cache the results, also those obtained before an interruption.

    Returns the result for each path, and the pairs of files that look alike, by index, int64 [p, 2].
    """
    cache, workers = ImageCheckCache(cache_file, config.max_pixels), config.workers or available_cores()
    states = file_states(paths, is_file=True)
    found = _with_spelling_hints([cache.get(state) for state in states])
    uncached = [i for i, check in enumerate(found) if check is None]
    if uncached:
        results = in_processes(partial(_check, max_pixels=config.max_pixels), [states[i] for i in uncached], workers, _killed)
        try:
            # Closed explicitly: after an interruption the workers end before the results so far are saved.
            with closing(results):
                for i, result in zip(uncached, track(results, "checking images", len(uncached), "images"), strict=True):
                    found[i] = result
        finally:
            cache.save(check for check in map(found.__getitem__, uncached) if check)
    checks = [check for check in found if check]
    pairs = _find_near_duplicates(checks)
    return _hash_equal_candidates(checks, pairs, cache, workers), pairs


def _find_near_duplicates(checks: Sequence[ImageCheck]) -> np.ndarray:
    """Pairs of usable image files with different bytes that look alike, by index, the smaller first, int64 [p, 2]."""
    first_of_bytes: dict[str, int] = {}
    for i, check in enumerate(checks):
        if not check.reason:
            first_of_bytes.setdefault(check.sha256, i)
    files = np.array(list(first_of_bytes.values()), dtype=np.int64)
    hashes = np.array([checks[i].perceptual_hash for i in files], dtype=np.int64)
    thumbnails = np.frombuffer(b"".join(checks[i].thumbnail for i in files), dtype=np.uint8).reshape(-1, THUMBNAIL_BYTES)
    pairs: np.ndarray = files[near_duplicates(hashes, thumbnails)]
    return pairs


def _hash_equal_candidates(checks: list[ImageCheck], pairs: np.ndarray, cache: ImageCheckCache, workers: int) -> list[ImageCheck]:
    """The checks, with `pixels` of those files that may have the same pixels as another one with other bytes.

    Only these are decoded in full: of the pairs that look alike those of the same size, with previews that agree but for rounding.
    """
    wanted = {int(i) for pair in pairs if _may_have_equal_pixels(checks[pair[0]], checks[pair[1]]) for i in pair}
    by_bytes = {checks[i].sha256: checks[i].pixels for i in sorted(wanted)}
    missing = {checks[i].sha256: checks[i].path for i in sorted(wanted) if not checks[i].pixels}
    digest = partial(_pixel_digest, max_pixels=cache.max_pixels)
    by_bytes |= zip(missing, in_processes(digest, list(missing.values()), workers, lambda _path: ""), strict=True)
    completed = [check if check.pixels == (pixels := by_bytes.get(check.sha256, "")) else replace(check, pixels=pixels) for check in checks]
    if missing:
        cache.save(completed)
    return completed


def _may_have_equal_pixels(first: ImageCheck, second: ImageCheck) -> bool:
    if (first.width, first.height) != (second.width, second.height):
        return False
    thumbnails = [np.frombuffer(check.thumbnail, dtype=np.uint8).astype(np.float32) for check in (first, second)]
    return float(np.abs(thumbnails[0] - thumbnails[1]).mean()) <= _MAX_ROUNDING[first.is_exact + second.is_exact]


def _pixel_digest(path: str, max_pixels: int) -> str:
    """Digest of the size and the upright RGB pixels of an image; empty where it can no longer be read."""
    try:
        image = open_image(read_image(path, max_pixels), max_pixels)
    except ImageError:
        return ""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def in_processes(function: Callable[[S], T], items: Sequence[S], workers: int, killed: Callable[[S], T]) -> Generator[T, None, None]:
    """`function` of each image file, in order; `killed(item)` for one whose decoding ended its process."""
    if workers == 1 or len(items) < MIN_IMAGES_FOR_POOL:
        yield from map(function, items)
    else:
        yield from map_in_workers(function, items, workers, _CHUNK, killed)


def read_image(path: str, max_pixels: int) -> bytes:
    """The bytes of an image file.

    Raises ImageError when this one cannot be read, and StorageError when object storage cannot be used, after a second try: its images
    are not missing, and the merge ends.
    """
    for wait in (RETRY_SECONDS[1], None):
        try:
            return read_image_file(parse_path(path), max_pixels)
        except ImageError as error:
            if not isinstance(error.__cause__, StorageError):
                raise
            if wait is None:
                raise error.__cause__ from error
            time.sleep(wait)
    raise AssertionError(path)


def _check(state: FileState, max_pixels: int) -> ImageCheck:
    path, sha256 = state[0], ""
    try:
        data = read_image(path, max_pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        measured = measure_image(data, path, max_pixels)
    except ImageError as error:
        if error.reason == DropReason.MISSING_FILE:
            state = (path, -1, -1)  # rights change without a new version or time: tried again next time
        return ImageCheck(*state, sha256, *error.size, reason=str(error.reason), detail=str(error))
    look, orientation = appearance(measured.preview), measured.orientation
    return ImageCheck(*state, sha256, *measured.size, "", "", *look, measured.is_exact, orientation=orientation)


def hash_images(paths: Sequence[str], config: DataConfig) -> list[ImageCheck]:
    """The SHA-256 of image files, which are not decoded, or why one cannot be read."""
    states = file_states(paths, is_file=True)
    hash_image = partial(_hash, max_pixels=config.max_pixels)
    results = in_processes(hash_image, states, config.workers or available_cores(), _killed)
    return list(track(results, "hashing images", len(states), "images"))


def _hash(state: FileState, max_pixels: int) -> ImageCheck:
    if state[1] < 0:
        return _missing(state[0])
    try:
        return ImageCheck(*state, hashlib.sha256(read_image(state[0], max_pixels)).hexdigest())
    except ImageError as error:
        return ImageCheck(*state, reason=str(error.reason), detail=str(error))


def _killed(state: FileState) -> ImageCheck:
    path = state[0]
    detail = f"{path}: the process that decoded it was ended by the system, as happens when memory runs out"
    return ImageCheck(*state, reason=str(DropReason.TOO_LARGE), detail=detail)


def _missing(path: str) -> ImageCheck:
    return ImageCheck(path, -1, -1, reason=str(DropReason.MISSING_FILE), detail=f"{path}: there is no such file{_other_spelling(path)}")


def _other_spelling(path: str) -> str:
    """What to do when there is a file with the same name in other bytes; empty when there is none, or the name is ASCII."""
    folder, name = os.path.split(path)
    if path.isascii() or is_url(path):
        return ""
    for in_gbk in (os.path.join(os.fsencode(folder), name.encode("gb18030")), path.encode("gb18030")):  # noqa: PTH118 - bytes
        if os.path.exists(in_gbk):  # noqa: PTH110 - bytes
            return "; there is one whose name is in GBK, as archives from Windows unpack: rename it with convmv -f gbk -t utf-8 --notest"
    for form in ("NFC", "NFD"):
        if os.path.exists(unicodedata.normalize(form, path)):  # noqa: PTH110 - never raises, whatever the name
            return _OTHER_FORM.format(form)
    return ""


def _with_spelling_hints(checks: list[ImageCheck | None]) -> list[ImageCheck | None]:
    """The checks, in which missing files of object storage name the other Unicode form, NFC or NFD, if there is a file of this name."""
    missing = {
        i: check.path for i, check in enumerate(checks) if check and check.size < 0 and is_url(check.path) and not check.path.isascii()
    }
    spellings = {(i, form): unicodedata.normalize(form, path) for i, path in missing.items() for form in ("NFC", "NFD")}
    states = remote_states(spellings.values())
    for (i, form), path in spellings.items():
        if states[path][0] >= 0 and (check := checks[i]) is not None:
            checks[i] = replace(check, detail=check.detail + _OTHER_FORM.format(form))
    return checks
