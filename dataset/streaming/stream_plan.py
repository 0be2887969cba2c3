"""What can be told of sources before they are streamed: about how many records they have, and with which prompts."""

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataset import sources
from dataset.build.fingerprint import file_states
from dataset.config import DataConfig
from dataset.loading.image_formats import IMAGE_SUFFIXES
from dataset.remote_files import FilePath, files_below
from dataset.sample import Language, Prompts, Task, detect_language
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
    names = source_names(config.sources)
    if config.weights is not None:
        return StreamPlan(config, names, list(config.weights), held_out)
    estimated = [_estimated_records(source, config) for source in config.sources]
    known = [size for size in estimated if size]
    # Where nothing can be told, as of a name on the Hub, the mean of the others.
    mean = sum(known) / len(known) if known else 1.0
    return StreamPlan(config, names, [size or mean for size in estimated], held_out)


def first_prompts(plan: StreamPlan) -> Prompts:
    """The prompt that each kind of question mostly has among the first records of all sources, by the sizes of these."""
    counts = Counter[tuple[Task, Language, str | None]]()
    for source, size in zip(plan.config.sources, plan.sizes, strict=True):
        first = [item for item in itertools.islice(sources.read(source, plan.config), FIRST_RECORDS) if isinstance(item, RawSample)]
        for raw in first:
            texts = [message.content for message in raw.messages]
            language = detect_language(*texts, *(() if raw.task == "vqa" else raw.targets))
            counts[raw.task, language, source.prompt_in(language, raw.task)] += size / len(first)  # type: ignore[assignment]  # a share
    prompts: dict[Task, dict[Language, str]] = {}
    for (task, language, prompt), _ in sorted(counts.items(), key=lambda item: item[1]):
        # The most frequent one comes last.
        prompts.setdefault(task, {}).pop(language, None)
        if prompt:
            prompts[task][language] = prompt
    return {task: by_language for task, by_language in prompts.items() if by_language}


def _estimated_records(source: Source, config: DataConfig) -> float:
    """About how many records a source has, from the sizes of its files and of its first records; 0 where that cannot be told."""
    files = matching_files(getattr(source, source.file_keys[0])) if source.file_keys else source.annotation_files
    if isinstance(source, FolderSource):
        count = float(sum(path.suffix.lower() in IMAGE_SUFFIXES for folder in files for path in files_below(folder)))
    elif all(path.suffix == ".parquet" for path in files):
        count = float(sum(map(_parquet_length, files)))
    else:
        records, _ = sources.open_part(source.parts()[0], config)
        with_keys = files[0].suffix.lower() not in (".csv", ".tsv")
        sizes = [_size(record, with_keys) for _, record in itertools.islice(records, FIRST_RECORDS) if isinstance(record, Mapping)]
        count = sum(map(_bytes_on_disk, files)) / (sum(sizes) / len(sizes)) if sizes else 0.0
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
