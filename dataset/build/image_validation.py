"""Check the image files of a merge: read, hash and decode each once, in several processes, and cache the results."""

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from cpu_cores import available_cores
from dataset.build.fingerprint import FileState, current_file_state, file_states
from dataset.build.image_check_cache import ImageCheck, ImageCheckCache
from dataset.build.perceptual_hash import THUMBNAIL_BYTES, appearance, near_duplicates
from dataset.config import DataConfig
from dataset.loading.image_io import RETRY_SECONDS, ImageError, measure_image, open_image, read_image_file
from dataset.loading.packed_images import PackedImage
from dataset.object_storage import StorageError
from dataset.record_validation import DropReason
from dataset.remote_files import is_url, parse_path, remote_states
from dataset.worker_pool import WorkerMap, map_in_workers
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
class _Job:
    """A file to check: its state, its path until it gets its final one, and its SHA-256; empty when it has that, or it is not known."""

    state: FileState
    unfinished: str = ""
    sha256: str = ""


class ImageChecker:
    """Checks image files, in worker processes while the paths of further ones are still being read, and caches the results.

    A context manager: when its block ends with an error, what was checked until then is cached.
    """

    def __init__(self, cache_file: Path, config: DataConfig):
        self._cache = ImageCheckCache(cache_file, config.max_pixels)
        self._check = partial(_check, max_pixels=config.max_pixels)
        self._workers = config.workers or available_cores()
        self._paths: list[str] = []
        self._checks: list[ImageCheck | None] = []
        self._jobs: list[tuple[int, _Job]] = []
        self._done = 0  # jobs
        self._map: WorkerMap[_Job, ImageCheck] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._map is not None:
            self._map.__exit__()
        if kind is not None:
            for check in self._map.completed() if self._map else ():
                self._keep(check)
            self._cache.save(self._new_checks())

    def add(self, path: str, unfinished: str = "", sha256: str = "") -> None:
        """Add a file, or a packed image.

        Args:
            path: Its path, as the result shall name it.
            unfinished: Path of a packed image in a shard that is still being written.
            sha256: Of a packed image.
        """
        self._paths.append(path)
        self._checks.append(None)
        if unfinished:
            self._begin(len(self._paths) - 1, _Job((path, -1, -1), unfinished, sha256))
        elif not is_url(path):  # the states of URLs come from one listing of their folder
            self._look_up(len(self._paths) - 1, current_file_state(path, is_file=True))

    def results(self) -> tuple[list[ImageCheck], np.ndarray]:
        """The result for each file in the order of `add`, and the pairs of files that look alike, by index, int64 [p, 2].

        Only when all shards are finished.
        """
        remote = [i for i, path in enumerate(self._paths) if is_url(path)]
        for i, state in zip(remote, file_states([self._paths[i] for i in remote], is_file=True), strict=True):
            self._look_up(i, state)
        self._checks = _with_spelling_hints(self._checks)
        if self._jobs:
            results = self._map.results() if self._map else map(self._check, [job for _, job in self._jobs])
            for check in track(results, "checking images", len(self._jobs), "images"):
                self._keep(check)
            self._cache.save(self._new_checks())
        checks = [check for check in self._checks if check]
        pairs = _find_near_duplicates(checks)
        return _hash_equal_candidates(checks, pairs, self._cache, self._workers), pairs

    def _look_up(self, i: int, state: FileState) -> None:
        self._checks[i] = _missing(state[0]) if state[1] < 0 else self._cache.get(state)
        if self._checks[i] is None:
            self._begin(i, _Job(state))

    def _begin(self, i: int, job: _Job) -> None:
        self._jobs.append((i, job))
        if self._map is not None:
            self._map.add(job)
        elif self._workers > 1 and len(self._jobs) >= MIN_IMAGES_FOR_POOL:
            self._map = WorkerMap(self._check, self._workers, _CHUNK, _killed)
            for _, earlier in self._jobs:
                self._map.add(earlier)

    def _keep(self, check: ImageCheck) -> None:
        """Keep the result of the next job."""
        i, job = self._jobs[self._done]
        self._done += 1
        if job.unfinished and check.size < 0 and check.reason != DropReason.MISSING_FILE:
            _, size, mtime = current_file_state(check.path, is_file=True)
            check = replace(check, size=size, mtime=mtime)
        self._checks[i] = check

    def _new_checks(self) -> Iterator[ImageCheck]:
        return (check for i, _ in self._jobs[: self._done] if (check := self._checks[i]))


def check_images(paths: Sequence[str], cache_file: Path, config: DataConfig) -> list[ImageCheck]:
    """The results of checking image files, which are cached, also when they are interrupted."""
    with ImageChecker(cache_file, config) as checker:
        for path in paths:
            checker.add(path)
        return checker.results()[0]


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


def _check(job: _Job, max_pixels: int) -> ImageCheck:
    state = job.state
    path, sha256 = state[0], ""
    try:
        data = _read_unfinished(job.unfinished) or read_image(path, max_pixels)
        sha256 = job.sha256 or hashlib.sha256(data).hexdigest()
        measured = measure_image(data, path, max_pixels)
    except ImageError as error:
        if error.reason == DropReason.MISSING_FILE:
            state = (path, -1, -1)  # rights change without a new version or time: tried again next time
        return ImageCheck(*state, sha256, *error.size, reason=str(error.reason), detail=str(error))
    look, orientation = appearance(measured.preview), measured.orientation
    return ImageCheck(*state, sha256, *measured.size, "", "", *look, measured.is_exact, orientation=orientation)


def _read_unfinished(path: str) -> bytes:
    """The bytes of an image in a shard that is still being written; none when the shard has got its final name."""
    image = PackedImage.parse(path)
    try:
        return image.read() if image else b""
    except FileNotFoundError:
        return b""


def hash_images(paths: Sequence[str], config: DataConfig) -> list[ImageCheck]:
    """The SHA-256 of image files, which are not decoded, or why one cannot be read."""
    states = file_states(paths, is_file=True)
    hash_image = partial(_hash, max_pixels=config.max_pixels)
    results = in_processes(hash_image, states, config.workers or available_cores(), lambda state: _killed(_Job(state)))
    return list(track(results, "hashing images", len(states), "images"))


def _hash(state: FileState, max_pixels: int) -> ImageCheck:
    if state[1] < 0:
        return _missing(state[0])
    try:
        return ImageCheck(*state, hashlib.sha256(read_image(state[0], max_pixels)).hexdigest())
    except ImageError as error:
        return ImageCheck(*state, reason=str(error.reason), detail=str(error))


def _killed(job: _Job) -> ImageCheck:
    path = job.state[0]
    detail = f"{path}: the process that decoded it was ended by the system, as happens when memory runs out"
    return ImageCheck(*job.state, reason=str(DropReason.TOO_LARGE), detail=detail)


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
