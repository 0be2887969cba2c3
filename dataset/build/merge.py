"""Merge sources into one dataset: read and validate records, check images, deduplicate, split, write Parquet.

Writes images.parquet, samples.parquet, report.json and dropped.jsonl. A merge that fails leaves the files of the previous merge unchanged.
"""

import gc
import hashlib
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atomic_io import naming_full_disk, remove_leftovers, write_json
from dataset import sources
from dataset.bounding_box import RawBox
from dataset.build.deduplication import join
from dataset.build.fingerprint import file_states, matches_fingerprint, write_fingerprint
from dataset.build.image_check_cache import ImageCheck
from dataset.build.image_packing import pack_images
from dataset.build.image_shards import ImageShards
from dataset.build.image_validation import ImageChecker
from dataset.build.merge_report import DROPPED_FILE, DroppedRecords, MergeReport, SourceReport
from dataset.build.parquet_tables import UPRIGHT_BOXES, write_images, write_samples
from dataset.build.record_buffer import RecordBuffer
from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError, upright_boxes
from dataset.remote_files import FilePath, RemotePath, files_below
from dataset.source_config import FolderSource, Source, source_names
from dataset.sources.record import ParsedRecord, RecordLocation, RejectedRecord
from errors import TesseraError
from file_lock import folder_lock
from progress import Progress

OUTPUT_FILES = ("images.parquet", "samples.parquet", "report.json", DROPPED_FILE)
"""Files of the result, in the order in which they are replaced."""
FAILED_DROPPED_FILE = "dropped_failed_merge.jsonl"
"""List of the dropped records of a merge of which no sample was left, until the next one."""

PACKED_FOLDER = "packed"
"""Folder of the shards with images that came inside a file."""

LOCK_FILE = ".merging.lock"

_RECORDS_AHEAD = 16
"""Records that are read before the images of an earlier one have been hashed."""


def merge(config: DataConfig, folder: Path) -> MergeReport:
    """Merge the sources of `config` into `folder`.

    Records that cannot be used are counted in the report and listed in dropped.jsonl. When neither settings nor files have changed
    since the last merge, nothing is written and its report is returned with `reused` set.

    Raises:
        TesseraError: An annotation file is missing or malformed, no sample is left, or the disk is full. The previous result stays.
        UsageError: Another process is merging into the folder.
    """
    names = source_names(config.sources)
    cache = folder / "cache"
    if matches_fingerprint(cache / "inputs.parquet", config):
        return replace(MergeReport.load(folder / "report.json"), reused=True)
    inputs = file_states(input_paths(config))
    report = MergeReport([SourceReport(name, source.format) for name, source in zip(names, config.sources, strict=True)])
    with work_folder(folder) as work, without_garbage_collection():
        with DroppedRecords(report, work / DROPPED_FILE, [source.annotation_files[0] for source in config.sources]) as dropped:
            with ImageChecker(cache / "image_checks.parquet", config) as checker:
                with ImageShards(folder / PACKED_FOLDER) as shards:
                    found = partial(_check_found, checker, shards)
                    buffer, _ = read_sources(config, dropped, work / "samples.arrow", shards.add, found)
                checks, look_alike = checker.results()
            kept = drop_unusable(buffer.records(), checks, dropped)
        check_not_empty(kept, report, work, folder)
        merged = join(kept, checks, look_alike, config)
        report.count_duplicates(checks, merged)
        if config.pack:
            merged = replace(merged, images=pack_images(merged.images, folder / PACKED_FOLDER, config))
        images_digest = write_images(work / "images.parquet", merged, names)
        write_samples(work / "samples.parquet", buffer, merged, config.sources, images_digest, report)
        report.add_shares(config)
        write_json(work / "report.json", report.to_json())
        for name in OUTPUT_FILES:
            (work / name).replace(folder / name)
        (folder / FAILED_DROPPED_FILE).unlink(missing_ok=True)
    states = [*inputs, *((check.path, check.size, check.mtime) for check in checks)]
    states += file_states([str(folder / name) for name in OUTPUT_FILES])
    write_fingerprint(cache / "inputs.parquet", config, states)
    return report


def _check_found(checker: ImageChecker, shards: ImageShards, path: str) -> None:
    checker.add(path, *shards.unfinished(path))


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder for incomplete files, on the file system of the result so that they can be renamed into place.

    Raises UsageError when another process merges into the folder.
    """
    work = folder / f".merge-{uuid.uuid4().hex[:8]}"
    with folder_lock(folder, LOCK_FILE, "merging") as is_locked:
        if is_locked:
            # What killed merges have left: no other one is running.
            for leftover in folder.glob(".merge-*"):
                shutil.rmtree(leftover)
            for written in (folder, folder / "cache", folder / PACKED_FOLDER):
                remove_leftovers(written)
        try:
            with naming_full_disk(folder):
                work.mkdir()
                yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def read_sources(
    config: DataConfig,
    dropped: DroppedRecords,
    file: Path,
    keep_image: Callable[[bytes, str], str],
    found: Callable[[str], object] = lambda _path: None,
) -> tuple[RecordBuffer, list[str]]:
    """Read all sources. Returns the records that are valid apart from their images, and the distinct image files that they name.

    Args:
        config: The sources.
        dropped: Lists those that are not valid.
        file: For the texts of the records.
        keep_image: Returns the path of an image that came inside an annotation file, from its bytes and their SHA-256.
        found: Called with each image file that was not named before.
    """
    image_indices: dict[str, int] = {}

    def index_of(path: str) -> int:
        if path not in image_indices:
            image_indices[path] = len(image_indices)
            found(path)
        return image_indices[path]

    with RecordBuffer(file) as buffer:
        for i, (source, counts) in enumerate(zip(config.sources, dropped.report.sources, strict=True)):
            with Progress(f"reading {counts.name}", None, "records") as progress:
                for item, digests in _with_digests(sources.read(source, config)):
                    progress.update()
                    counts.read += 1
                    if isinstance(item, RejectedRecord):
                        dropped.drop(i, item.location, item.reason, item.detail)
                        continue
                    files = [keep_image(image, next(digests)) if isinstance(image, bytes) else str(image) for image in item.images]
                    split = source.fixed_split or item.split
                    buffer.add(item, i, counts.name, split, list(map(index_of, files)))
    return buffer, list(image_indices)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Context without it: records are no cycles, and to look for these among all that are held takes a fifth of the time of reading them
    (measured)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _with_digests(items: Iterator[ParsedRecord]) -> Iterator[tuple[ParsedRecord, Iterator[str]]]:
    """Each record with the SHA-256 of the images that came with it, which another thread computes while the next records are read."""
    waiting: deque[tuple[ParsedRecord, list[Future[str]]]] = deque()

    def first() -> tuple[ParsedRecord, Iterator[str]]:
        item, digests = waiting.popleft()
        return item, (digest.result() for digest in digests)

    with ThreadPoolExecutor(1) as pool:
        for item in items:
            images = [] if isinstance(item, RejectedRecord) else [image for image in item.images if isinstance(image, bytes)]
            if not images and not waiting:
                yield item, iter(())
                continue
            waiting.append((item, [pool.submit(_sha256, image) for image in images]))
            if len(waiting) > _RECORDS_AHEAD:
                yield first()
        while waiting:
            yield first()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_not_empty(kept: pa.Table, report: MergeReport, work: Path, folder: Path) -> None:
    """Raise TesseraError when no record is left, and keep the list of the dropped ones."""
    if not len(kept):
        (work / DROPPED_FILE).replace(folder / FAILED_DROPPED_FILE)
        raise TesseraError(f"{report.empty_message()}; all are listed in {folder / FAILED_DROPPED_FILE}")


def drop_unusable(records: pa.Table, image_checks: list[ImageCheck], dropped: DroppedRecords) -> pa.Table:
    """The records with usable images and boxes only, with their `row` in the buffer and, as `regions`, their boxes in the upright images.
    The others are dropped for the reason of their first unusable image, or box."""
    unusable = np.array([bool(check.reason) for check in image_checks], dtype=bool)
    files = records["files"].combine_chunks()
    bad_rows = np.unique(pc.list_parent_indices(files).to_numpy()[unusable[files.flatten().to_numpy()]])
    for record in records.take(pa.array(bad_rows)).to_pylist():
        failed = [image_checks[file] for file in record["files"] if unusable[file]]
        details = dict.fromkeys(check.detail for check in failed)
        location = RecordLocation(record["location_kind"], record["location_number"], record["location_file"])
        dropped.drop(record["source"], location, DropReason(failed[0].reason), "; ".join(details))
    keep = np.ones(len(records), dtype=bool)
    keep[bad_rows] = False
    regions = regions_of_records(records, keep, image_checks, dropped)
    if "regions" in records.column_names:
        records = records.drop_columns("regions")
    records = records.append_column("regions", regions)
    if "row" not in records.column_names:
        records = records.append_column("row", pa.array(np.arange(len(records))))
    for source in dropped.report.sources:
        source.kept = source.read - sum(source.dropped.values())
    return records.filter(pa.array(keep))


def regions_of_records(records: pa.Table, keep: np.ndarray, image_checks: Sequence[ImageCheck], dropped: DroppedRecords) -> pa.ChunkedArray:
    """The regions of each record, null where it has no boxes. A record with a box that its image cannot have is dropped.

    Args:
        records: The records.
        keep: Which of them are kept so far, bool [records]; changed here.
        image_checks: Check of each image file. Boxes of those that were not decoded, as while streamed data are set aside, stay unchecked.
        dropped: Lists those that are dropped.
    """
    regions: list[list[dict[str, Any]] | None] = [None] * len(records)
    for row in np.flatnonzero(keep & pc.is_valid(records["boxes"]).to_numpy()).tolist():
        record = records.slice(row, 1).to_pylist()[0]
        checks = [image_checks[file] for file in record["files"]]
        if not all(check.width for check in checks):
            continue
        boxes = [RawBox(**{**box, "corners": tuple(box["corners"])}) for box in record["boxes"]]
        try:
            upright = upright_boxes(boxes, [(check.width, check.height) for check in checks], [check.orientation for check in checks])
        except InvalidRecordError as error:
            location = RecordLocation(record["location_kind"], record["location_number"], record["location_file"])
            dropped.drop(record["source"], location, error.reason, error.detail)
            keep[row] = False
            continue
        regions[row] = [{"image": image, "box": list(box)} for image, box in upright]
    return pa.chunked_array([pa.array(regions, UPRIGHT_BOXES)])


def input_paths(config: DataConfig) -> list[str]:
    """Annotation files, all files of a folder that is read as a whole, and image folders; these because missing images may be added."""
    return [path for source in config.sources for file in source.annotation_files for path in _with_content(file, source)] + [
        f"{str(source.images).rstrip('/')}/" if isinstance(source.images, RemotePath) else str(source.images)
        for source in config.sources
        if source.images is not None
    ]


def _with_content(path: FilePath, source: Source) -> list[str]:
    """A file, or a folder with all that is below it."""
    if isinstance(path, Path):
        return list(map(str, [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]))
    if not isinstance(source, FolderSource):
        return [str(path)]
    files = files_below(path)
    folders = sorted({folder for file in files for folder in file.parents})
    return [*(f"{path / folder}/" for folder in folders), *(str(path / file) for file in files)]
