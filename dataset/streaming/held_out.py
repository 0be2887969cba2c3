"""Validation and test samples of data that are streamed: set aside before training, so that they can be validated on and evaluated.

In: the sources. Out: images.parquet and samples.parquet of these samples alone, and held_out.parquet: the images whose split another
sample or source decides, which the streams then follow. Files of training images are read and hashed, not decoded and not copied.
"""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import write_json
from dataset import sources
from dataset.build.deduplication import MergeResult, join
from dataset.build.fingerprint import current_file_state, file_states, matches_fingerprint, write_fingerprint
from dataset.build.image_check_cache import ImageCheck
from dataset.build.image_shards import ImageShards
from dataset.build.image_validation import check_images, hash_images
from dataset.build.merge import (
    PACKED_FOLDER,
    check_not_empty,
    drop_unusable,
    input_paths,
    read_sources,
    without_garbage_collection,
    work_folder,
)
from dataset.build.merge_report import DROPPED_FILE, DroppedRecords, MergeReport, SourceReport
from dataset.build.parquet_tables import write_images, write_samples
from dataset.build.record_buffer import RecordBuffer
from dataset.build.splits import SPLITS
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.source_base import Split
from dataset.source_config import source_names
from dataset.sources.record import RejectedRecord
from dataset.streaming.checked_sample import HeldOut, split_of
from errors import UsageError, command
from progress import Progress

HELD_OUT_FILE = "held_out.parquet"
"""SHA-256 of the images, and of texts without images, whose split another sample or source decides, with that split."""

OUTPUT_FILES = ("images.parquet", "samples.parquet", HELD_OUT_FILE, "report.json", DROPPED_FILE)
"""Files of the result, in the order in which they are replaced."""

_INSIDE = "sha256:"
"""Before the SHA-256 of an image that is inside an annotation file, in the place of its path."""


def load_held_out(folder: Path, config: DataConfig) -> tuple[SampleStore, HeldOut] | None:
    """The samples that were set aside, and what is known of images in several splits; None where tools/preprocess.py was not run.

    Raises UsageError when they are of other settings or files.
    """
    if not (folder / HELD_OUT_FILE).is_file():
        return None
    if not matches_fingerprint(folder / "cache" / "inputs.parquet", config):
        raise UsageError(f"{folder}: was set aside of other settings or files; run {command('tools/preprocess.py')} again")
    table = pq.read_table(folder / HELD_OUT_FILE)
    return SampleStore(folder), dict(zip(table["sha256"].to_pylist(), table["split"].to_pylist(), strict=True))


def set_aside(config: DataConfig, folder: Path) -> MergeReport:
    """Write the validation and test samples of the sources to `folder`. The report counts all samples.

    Raises:
        TesseraError: An annotation file is missing or malformed, no sample is left, or the disk is full. The previous result stays.
        UsageError: Another process writes into the folder.
    """
    names = source_names(config.sources)
    inputs = file_states(input_paths(config))
    report = MergeReport([SourceReport(name, source.format) for name, source in zip(names, config.sources, strict=True)])
    report.images_compared = False
    with work_folder(folder) as work, without_garbage_collection():
        with DroppedRecords(report, work / DROPPED_FILE, [source.annotation_files[0] for source in config.sources]) as dropped:
            buffer, images = read_sources(config, dropped, work / "samples.arrow", lambda _image, digest: _INSIDE + digest)
            hashed = _hash_images(images, config)
            kept = drop_unusable(buffer.records(), hashed, dropped)
            everything = join(kept, hashed, np.zeros((0, 2), np.int64), config)
            held_out = _decided_elsewhere(kept, hashed, everything, config)
            is_aside = everything.samples["split"].to_numpy() != SPLITS.index("train")
            aside = kept.filter(pa.array(is_aside))
            checks = _with_checked_images(aside, images, hashed, folder, config)
            aside = drop_unusable(aside, checks, dropped)
        check_not_empty(kept, report, work, folder)
        merged = join(aside, checks, np.zeros((0, 2), np.int64), config)
        digest = write_images(work / "images.parquet", merged, names)
        write_samples(work / "samples.parquet", buffer, merged, config.sources, digest, report)
        _count_training(report, buffer, everything, config)
        pq.write_table(pa.table({"sha256": list(held_out), "split": list(held_out.values())}), work / HELD_OUT_FILE)
        write_json(work / "report.json", report.to_json())
        for name in OUTPUT_FILES:
            (work / name).replace(folder / name)
    used = (checks[i] for i in np.unique(aside["files"].combine_chunks().flatten().to_numpy()))
    states = [*inputs, *((check.path, check.size, check.mtime) for check in used)]
    states += [current_file_state(str(folder / name)) for name in OUTPUT_FILES]
    write_fingerprint(folder / "cache" / "inputs.parquet", config, states)
    return report


def _hash_images(paths: list[str], config: DataConfig) -> list[ImageCheck]:
    """The SHA-256 of each image, or why its file cannot be read."""
    files = [path for path in paths if not path.startswith(_INSIDE)]
    by_path = dict(zip(files, hash_images(files, config), strict=True))
    return [by_path.get(path) or ImageCheck(path, 0, 0, path.removeprefix(_INSIDE)) for path in paths]


def _decided_elsewhere(kept: pa.Table, hashed: list[ImageCheck], everything: MergeResult, config: DataConfig) -> dict[str, Split]:
    """The splits that a stream would not find by itself: by SHA-256 of the images, or of the texts of samples without images."""
    decided: dict[str, Split] = {}
    of_record = (kept[name].to_pylist() for name in ("files", "source_split", "text_digest"))
    for files, own, text, split in zip(*of_record, everything.samples["split"].to_pylist(), strict=True):
        keys = [hashed[file].sha256 for file in files] or [text]
        if split_of(keys, SPLITS[own] if own >= 0 else None, config, {}) != SPLITS[split]:
            decided |= dict.fromkeys(keys, SPLITS[split])
    return decided


def _with_checked_images(
    aside: pa.Table, images: list[str], hashed: list[ImageCheck], folder: Path, config: DataConfig
) -> list[ImageCheck]:
    """The checks of all images, those of some records after decoding; of these, images inside an annotation file are packed first."""
    used = np.unique(aside["files"].combine_chunks().flatten().to_numpy()).tolist()
    paths = {i: images[i] for i in used}
    if wanted := {path for path in paths.values() if path.startswith(_INSIDE)}:
        packed: dict[str, str] = {}
        with ImageShards(folder / PACKED_FOLDER) as shards, Progress("packing images", None, "records") as progress:
            for source in config.sources:
                for item in sources.read(source, config):
                    progress.update()
                    for image in () if isinstance(item, RejectedRecord) else item.images:
                        if isinstance(image, bytes) and (path := _INSIDE + hashlib.sha256(image).hexdigest()) in wanted:
                            packed[path] = shards.add(image)
        paths = {i: packed.get(path, path) for i, path in paths.items()}
    checked = check_images(list(paths.values()), folder / "cache" / "image_checks.parquet", config)
    checks = list(hashed)
    for i, check in zip(paths, checked, strict=True):
        checks[i] = check
    return checks


def _count_training(report: MergeReport, buffer: RecordBuffer, everything: MergeResult, config: DataConfig) -> None:
    """Add the training samples, which stay where they are, to the counts of those that were set aside."""
    rows, origins, splits = (everything.samples[name].to_numpy() for name in ("row", "source", "split"))
    repeats = np.array([source.repeat for source in config.sources])[origins] * (splits == SPLITS.index("train"))
    training = np.bincount(origins, repeats, len(config.sources)).astype(int).tolist()
    moved = np.bincount(origins[everything.samples["moved"].to_numpy()], minlength=len(config.sources)).tolist()
    for source, count, left in zip(report.sources, training, moved, strict=True):
        source.samples, source.training_samples, source.moved = source.samples + count, count, left
    report.samples, report.by_split["train"] = report.samples + sum(training), sum(training)
    languages = np.concatenate([batch.column("language").to_numpy(zero_copy_only=False) for batch in buffer.batches()])[rows]
    for language in report.by_language:
        report.by_language[language] += int(repeats[languages == language].sum())
