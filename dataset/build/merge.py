"""Merging sources into one data set: read, check, join what shares a picture, split, write.

In: DataConfig and a folder. Out: images.parquet, samples.parquet and report.json in it, or the earlier ones untouched.
"""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomic_io import replacing, write_json
from dataset import sources
from dataset.build.deduplication import join
from dataset.build.fingerprint import is_unchanged, note_files, state_of
from dataset.build.image_validation import Checked, Memory, check_pictures
from dataset.build.merge_report import Report, SourceReport
from dataset.build.parquet_tables import write_images, write_samples
from dataset.build.record_buffer import Spool
from dataset.config import DataConfig, Source
from dataset.loading.image_io import format_of
from dataset.record_validation import BadRecord, Reason, check_conversation, check_encoding
from dataset.sources.record import Item, Place, RawSample, Reading, Rejected
from errors import TesseraError, UsageError
from progress import Progress

RESULTS = ("images.parquet", "samples.parquet", "report.json")


def merge(config: DataConfig, folder: Path) -> Report:
    """Merge the sources of `config` into `folder`.

    Records that cannot be used are counted in the report. Raises TesseraError when an annotation file is missing or is
    not what its format says, or when nothing is left; then the folder's earlier result stays as it was. Where neither
    settings nor files have changed since the last merge, that one's report is returned and nothing is written.
    """
    names = source_names(config.sources)
    cache = folder / "cache"
    if is_unchanged(cache / "inputs.parquet", config):
        return replace(Report.load(folder / "report.json"), reused=True)
    inputs = [state_of(path) for path in _inputs(config)]
    report = Report([SourceReport(name, source.format) for name, source in zip(names, config.sources, strict=True)])
    with _workplace(folder) as work:
        spool, pictures = _read_sources(config, report, work / "samples.arrow", folder / "embedded")
        checked = check_pictures(pictures, Memory(cache / "pictures.parquet"), config.max_pixels, config.workers)
        keep = _drop_unusable(spool, checked, report, config.sources)
        if not keep.any():
            raise TesseraError(report.nothing_left())
        merged = join(spool, keep, checked, config.split, config.seed)
        images = write_images(work / "images.parquet", merged, names)
        write_samples(work / "samples.parquet", spool, merged, config.sources, images, report)
        write_json(work / "report.json", report.to_json())
        for name in RESULTS:
            (work / name).replace(folder / name)
    results = [state_of(str(folder / name)) for name in RESULTS]
    note_files(cache / "inputs.parquet", config, [*inputs, *((one.path, one.size, one.mtime) for one in checked), *results])
    return report


def source_names(listed: tuple[Source, ...]) -> list[str]:
    """The name of each source: its own, else its format's, numbered from the second on. Raises UsageError."""
    if not listed:
        raise UsageError("data.sources: empty; name at least one source")
    taken = [source.name for source in listed if source.name is not None]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise UsageError(f"data.sources: the name '{twice[0]}' stands twice")
    names: list[str] = []
    for source in listed:
        name, number = source.name or source.format, 1
        while source.name is None and (name in taken or name in names):
            number += 1
            name = f"{source.format}-{number}"
        names.append(name)
    return names


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the file system where they will stand."""
    work = folder / f".merge-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_sources(config: DataConfig, report: Report, file: Path, embedded: Path) -> tuple[Spool, list[str]]:
    """All records that are sound but for their pictures, and the distinct picture files that they name."""
    reading = Reading(config.seed, config.vqa_target)
    numbers: dict[str, int] = {}
    with Spool(file) as spool:
        for i, (source, counts) in enumerate(zip(config.sources, report.sources, strict=True)):
            with Progress(f"reading {counts.name}", None, "records") as progress:
                for item in sources.read(source, reading):
                    progress.update()
                    counts.read += 1
                    try:
                        sample = _sound(item)
                    except BadRecord as bad:
                        counts.drop(bad.reason, _example(source, item.place, bad.detail))
                        continue
                    files = [_embed(picture, embedded) if isinstance(picture, bytes) else str(picture) for picture in sample.pictures]
                    split = source.split or sample.split
                    spool.add(sample, i, counts.name, split, [numbers.setdefault(name, len(numbers)) for name in files])
    return spool, list(numbers)


def _sound(item: Item) -> RawSample:
    """The sample, when its conversation can be used. Raises BadRecord."""
    if isinstance(item, Rejected):
        raise BadRecord(item.reason, item.detail)
    check_conversation(item.messages, item.targets, item.answers, len(item.pictures))
    check_encoding(item.key)
    return item


def _embed(picture: bytes, folder: Path) -> str:
    """Write a picture that came inside an annotation file to a file named after its content."""
    # What is wrong with a picture of no format, the check of all picture files says, with its place.
    suffix = (format_of(picture) or "bin").lower()
    path = folder / f"{hashlib.sha256(picture).hexdigest()}.{'jpg' if suffix in ('jpeg', 'mpo') else suffix}"
    if not path.is_file() or path.stat().st_size != len(picture):
        with replacing(path) as beside:
            beside.write_bytes(picture)
    return str(path)


def _drop_unusable(spool: Spool, checked: list[Checked], report: Report, listed: tuple[Source, ...]) -> np.ndarray:
    """Which samples [n] bool have only usable pictures; the others are counted under what is wrong with the first bad one."""
    keep = np.ones(len(spool), dtype=bool)
    bad = {i: one for i, one in enumerate(checked) if one.reason}
    for i in range(len(spool)) if bad else ():
        faults = [bad[number] for number in spool.pictures_of(i) if number in bad]
        if faults:
            keep[i] = False
            source = spool.source[i]
            report.sources[source].drop(Reason(faults[0].reason), _example(listed[source], spool.places[i], faults[0].detail))
    for i, count in enumerate(np.bincount(np.asarray(spool.source)[keep], minlength=len(listed))):
        report.sources[i].kept = int(count)
    return keep


def _example(source: Source, place: Place, detail: str) -> str:
    return f"{sources.files(source)[0]}: {place}: {detail}"


def _inputs(config: DataConfig) -> list[str]:
    """Annotation files, and picture folders: a name that was missing may appear there."""
    annotations = [path for source in config.sources for path in sources.files(source)]
    return [str(path) for path in (*annotations, *(source.images for source in config.sources)) if path is not None]
