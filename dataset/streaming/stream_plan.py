"""What can be told of sources before they are streamed: about how many records they have, and with which prompts."""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataset import sources
from dataset.build.fingerprint import file_states
from dataset.config import DataConfig
from dataset.loading.image_formats import IMAGE_SUFFIXES
from dataset.record_validation import InvalidRecordError
from dataset.remote_files import FilePath, files_below
from dataset.sample import Language, Prompts, Task
from dataset.source_config import FolderSource, Source, source_names
from dataset.source_files import matching_files
from dataset.sources.record import RawSample
from dataset.sources.rows import for_arrow
from dataset.streaming.checked_sample import HeldOut
from dataset.streaming.sample_reader import StreamPlan

FIRST_RECORDS = 200
"""Records of each source that are read before training, for their size and prompts."""


def stream_plan(config: DataConfig, held_out: HeldOut) -> StreamPlan:
    """The plan of a run. Raises TesseraError when a source cannot be opened. held_out: see `StreamPlan`."""
    first = [_first_records(source, config) for source in config.sources]
    estimated = [_estimated_records(source, raw) for source, (raw, _) in zip(config.sources, first, strict=True)]
    known = [size for size in estimated if size]
    # Where nothing can be told, as of a name on the Hub, the mean of the others.
    mean = sum(known) / len(known) if known else 1.0
    sizes = [size or mean for size in estimated] if config.weights is None else list(config.weights)
    prompts = _prompts(config, sizes, [samples for _, samples in first])
    return StreamPlan(config, source_names(config.sources), sizes, held_out, prompts)


def _first_records(source: Source, config: DataConfig) -> tuple[list[Any], list[RawSample]]:
    """The records of a source that come first, and those of them that are samples. Once, because some formats read a whole file for it."""
    opened = (sources.open_part(part, config) for part in source.parts())
    records = ((location, record, parse) for part, parse in opened for location, record in part)
    first = list(itertools.islice(records, FIRST_RECORDS))
    samples = []
    for location, record, parse in first:
        # Those that are rejected are counted when they are streamed.
        with contextlib.suppress(InvalidRecordError):
            samples.append(sources.valid_sample(location, record, parse))
    return [record for _, record, _ in first], samples


def _prompts(config: DataConfig, sizes: Sequence[float], first: Sequence[Sequence[RawSample]]) -> Prompts:
    """The prompt of most samples of each kind and language, as far as the first ones tell; none is left out."""
    counts = defaultdict[tuple[Task, Language, str | None], float](float)
    for source, size, samples in zip(config.sources, sizes, first, strict=True):
        for raw in samples:
            counts[raw.task, raw.language, source.prompt_in(raw.language, raw.task)] += size / len(samples)
    most = {(task, language): prompt for (task, language, prompt), _ in sorted(counts.items(), key=lambda item: item[1])}
    prompts: dict[Task, dict[Language, str]] = {}
    for (task, language), prompt in most.items():
        if prompt:
            prompts.setdefault(task, {})[language] = prompt
    return prompts


def _estimated_records(source: Source, first: Sequence[Any]) -> float:
    """About how many records a source has, from the sizes of its files and of its first records; 0 where that cannot be told."""
    files = matching_files(getattr(source, source.file_keys[0])) if source.file_keys else source.annotation_files
    if isinstance(source, FolderSource):
        count = float(sum(path.suffix.lower() in IMAGE_SUFFIXES for folder in files for path in files_below(folder)))
    elif all(path.suffix == ".parquet" for path in files):
        count = float(sum(map(_parquet_length, files)))
    else:
        with_keys = files[0].suffix.lower() not in (".csv", ".tsv")
        record_sizes = [_size(record, with_keys) for record in first if isinstance(record, Mapping)]
        count = sum(map(_bytes_on_disk, files)) * len(record_sizes) / sum(record_sizes) if sum(record_sizes) else 0.0
    return count if source.limit is None else min(count, source.limit)


def _parquet_length(path: FilePath) -> int:
    with for_arrow(path) as source:
        return int(pq.read_metadata(source).num_rows)


def _bytes_on_disk(path: FilePath) -> int:
    if isinstance(path, Path) and path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return max(file_states([str(path)])[0][1], 0)


def _size(value: Any, with_keys: bool) -> int:
    """About how many bytes a value takes in a file."""
    if isinstance(value, Mapping):
        return sum(_size(item, with_keys) + (len(str(key)) + 4 if with_keys else 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_size(item, with_keys) + 2 for item in value)
    return len(value) if isinstance(value, bytes) else len(str(value).encode("utf-8", "replace")) + 2
