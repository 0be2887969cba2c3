"""Speed of other ways to keep the same data: Parquet shards with images inside, packed images, streaming.

All figures are ratios to, or stand beside, the same records as annotation files with image files, in one run.
"""

import itertools
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import config as configuration
from benchmarks.preprocessing_speed import MergeMeasurement, measure_merge, run_in_subprocess, write_synthetic_sources
from dataset import sources
from dataset.build.image_shards import ImageShards
from dataset.config import DataConfig
from dataset.loading.image_io import open_image
from dataset.loading.packed_images import file_of_image
from dataset.source_config import HubSource, MessagesSource
from dataset.sources.record import RawSample
from model.siglip_qwen.config import siglip_qwen_settings
from process_group import ProcessGroup
from progress import track

ROWS_PER_SHARD = 5000
"""Rows of a Parquet file."""

BATCH_SIZE = 16
"""Samples of a batch that is streamed."""

RANDOM_READS = 2000
"""Images of a round of random reads."""


def write_parquet_shards(config: DataConfig, folder: Path) -> DataConfig:
    """Write the records of `config` as rows of Parquet files, each with the bytes of its image, as data sets on the Hub have them."""
    folder.mkdir()
    records = (item for source in config.sources for item in sources.read(source, config) if isinstance(item, RawSample))
    for number in itertools.count():
        if not (part := list(itertools.islice(records, ROWS_PER_SHARD))):
            break
        rows = (_row(record) for record in track(part, f"writing shard {number}", len(part), "rows"))
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"part-{number:05d}.parquet", compression="none", row_group_size=100)
    return DataConfig(sources=(MessagesSource(format="messages", path=folder / "part-*.parquet"),))


def _row(record: RawSample) -> dict[str, Any]:
    turns = [*((message.role, message.content) for message in record.messages), ("assistant", record.targets[0])]
    images = [{"bytes": Path(os.fsdecode(image)).read_bytes(), "path": None} for image in record.images if isinstance(image, Path)]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "images": images}


def compare_merges(files: DataConfig, shards: DataConfig, folder: Path, rounds: int) -> dict[str, list[MergeMeasurement]]:
    """Merge both from nothing, in turns."""
    measured: dict[str, list[MergeMeasurement]] = {"files": [], "Parquet": []}
    for _ in range(rounds):
        for name, config in zip(measured, (files, shards), strict=True):
            measured[name].append(run_in_subprocess(measure_merge, config, folder / "merged"))
            shutil.rmtree(folder / "merged")
    return measured


def pack(paths: list[Path], folder: Path) -> list[Path]:
    """Pack image files into shards; returns their places."""
    with ImageShards(folder) as shards:
        return [Path(shards.add(path.read_bytes())) for path in track(paths, "packing images", len(paths), "images")]


def compare_random_reads(loose: list[Path], packed: list[Path], count: int, rounds: int) -> dict[str, list[float]]:
    """Images decoded per second in random order, from files and from shards in turns, after their pages were dropped from memory."""
    rates: dict[str, list[float]] = {"files": [], "packed": []}
    for number in range(rounds):
        order = random.Random(number).sample(range(len(loose)), min(count, len(loose)))
        for name, paths in zip(rates, (loose, packed), strict=True):
            drop_pages({file_of_image(path) for path in paths})
            begin = time.perf_counter()
            for index in order:
                open_image(paths[index])
            rates[name].append(len(order) / (time.perf_counter() - begin))
    return rates


def drop_pages(files: set[Path]) -> None:
    """Ask the system to drop the cached pages of files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class StreamMeasurement:
    """Seconds from the first call to the first batch, samples per second after it, and the most memory of this process and its workers
    together at one time in bytes: what each does not share."""

    first_batch: float
    samples_per_second: float
    peak_bytes: int


def measure_stream(data: DataConfig, samples: int, workers: int) -> StreamMeasurement:
    """Open sources as a training run does, and read some samples in padded batches, with the processor of a full-size model."""
    # Not at the top: merges are measured in processes that import this module, and torch would add to their memory.
    from benchmarks.full_size_models import build_processor
    from dataset.loading.collators import PaddedCollator
    from dataset.loading.samplers import StepShape
    from dataset.streaming.stream_plan import stream_plan
    from training.data_loading import Batching
    from training.streaming.stream_setup import StreamSetup

    config = configuration.load(configuration.DEFAULT.parent / "siglip_qwen3_1.7b_lora.yaml")
    processor = build_processor("1.7b", siglip_qwen_settings(config.model, "this benchmark"))
    batching = Batching(False, BATCH_SIZE, config.train.packing_length, StepShape(), 1)
    begin = time.perf_counter()
    plan = stream_plan(data, {})
    collate = PaddedCollator(int(processor.tokenizer.pad_token_id))
    stream = StreamSetup.of(plan, replace(config, data=data), batching, processor, collate)
    batches = iter(stream.loader(0, ProcessGroup(), workers, None, False))
    next(batches)
    first = time.perf_counter()
    peak = 0
    for number in track(range(samples // BATCH_SIZE), "streaming", samples // BATCH_SIZE, "batches"):
        next(batches)
        if number % 16 == 0:
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak = max(peak, sum(process.memory_full_info().uss for process in processes))
    return StreamMeasurement(first - begin, samples / (time.perf_counter() - first), peak)


def as_hub_folder(shards: DataConfig) -> DataConfig:
    """The folder of Parquet shards, read by `datasets` while streaming."""
    [source] = shards.sources
    folder = source.annotation_files[0].parent
    return DataConfig(sources=(HubSource(format="hub", path=str(folder), split="train"),), streaming=True)


def compare_sources(folder: Path, images: int, records: int, size: tuple[int, int], streamed: int, rounds: int) -> Iterator[str]:
    """Write synthetic sources, measure all of the above, and describe it.

    Args:
        folder: For all files, empty.
        images: Number of image files.
        records: Number of records about them.
        size: Width and height of the images in pixels.
        streamed: Samples that are streamed.
        rounds: Repetitions of merges and of random reads.
    """
    files = run_in_subprocess(write_synthetic_sources, folder / "raw", images, records, size)
    shards = run_in_subprocess(write_parquet_shards, files, folder / "parquet")
    merges = compare_merges(files, shards, folder, rounds)
    for name, measured in merges.items():
        seconds = ", ".join(f"{one.seconds:.1f}" for one in measured)
        yield f"merge of {name}: {seconds} s for {measured[0].records:,} records"
    yield f"Parquet in the time of files: {_ratio(merges['Parquet'], merges['files'], lambda one: one.seconds):.2f}"
    loose = sorted((folder / "raw" / "images").iterdir())
    rates = compare_random_reads(loose, pack(loose, folder / "packed"), RANDOM_READS, rounds)
    for name, measured_rates in rates.items():
        yield f"random images from {name}: {', '.join(f'{rate:,.0f}' for rate in measured_rates)} a second, pages dropped before"
    yield f"packed at the rate of files: {_ratio(rates['packed'], rates['files'], lambda rate: rate):.2f}"
    for name, config in (("files", replace(files, streaming=True)), ("datasets, Parquet", as_hub_folder(shards))):
        stream = run_in_subprocess(measure_stream, config, streamed, 2)
        yield (
            f"streaming {name}: first after {stream.first_batch:.1f} s, then {stream.samples_per_second:,.0f} samples/s in 2 workers, "
            f"at most {stream.peak_bytes / 2**30:.2f} GiB"
        )


def _ratio(ours: list[Any], other: list[Any], value: Callable[[Any], float]) -> float:
    """Median of the ratios of the rounds."""
    return statistics.median(value(one) / value(two) for one, two in zip(ours, other, strict=True))
