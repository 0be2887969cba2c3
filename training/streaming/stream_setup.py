"""Prepares streamed training data: opens the sources, encodes the first samples, makes the loader of a stage."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataset.loading.encoded_sample import EncodedSample
from dataset.loading.sample_store import SampleStore
from dataset.streaming.held_out import load_held_out
from dataset.streaming.sample_reader import StreamPlan
from dataset.streaming.source_records import Share
from dataset.streaming.stream_plan import stream_plan
from errors import UsageError, command
from model.family import Collate
from model.processors.sample_processor import SampleProcessor
from process_group import ProcessGroup
from training.config import Experiment
from training.data_loading import Batching
from training.streaming.batch_stream import BatchStream, StreamSettings
from training.streaming.stream_loader import StreamDataset, StreamLayout, StreamLoader

PREFETCH_FACTOR = 4
"""Batches that each DataLoader worker prepares in advance."""


@dataclass(frozen=True)
class StreamSetup:
    """What is streamed, and as which batches.

    Args:
        plan: Sources, their sizes, and what is known of images in several splits.
        settings: Of the streams of the first stage; another stage has another seed.
        first: The samples that come first.
    """

    plan: StreamPlan
    settings: StreamSettings
    first: list[EncodedSample]

    @classmethod
    def of(cls, plan: StreamPlan, config: Experiment, batching: Batching, processor: SampleProcessor, collate: Collate) -> "StreamSetup":
        """Encode the first samples, with the settings of a run. Raises UsageError when a sample may be longer than a packed row, and
        TesseraError when the sources cannot be read or have no training sample."""
        if batching.packed and batching.packing_length < processor.max_length:
            raise UsageError(
                f"train.packing_length: {batching.packing_length} is less than model.max_length={processor.max_length}, to which samples "
                "of a stream may be long"
            )
        if batching.step.batches != batching.step.micro_batches * batching.world_size:
            raise UsageError(
                "train.per_device_train_batch_size: must be as where the run began, since batches of a stream are not divided; change "
                "train.gradient_accumulation_steps instead"
            )
        size = batching.packing_length if batching.packed else batching.per_device_train_batch_size
        settings = StreamSettings(plan, processor, collate, batching.packed, size, config.train.seed, config.data.augmentation)
        return cls(plan, settings, BatchStream(settings, Share()).first_samples())

    @property
    def samples_per_batch(self) -> float:
        """Samples of a batch, in packed rows as many as the first samples tell."""
        settings = self.settings
        mean_length = sum(map(len, self.first)) / len(self.first)
        return settings.size / mean_length if settings.packed else settings.size

    def loader(self, index: int, group: ProcessGroup, workers: int, resumed_from: Path | None, pin_memory: bool) -> StreamLoader:
        """This rank's batches of a stage.

        Args:
            index: Index of the stage, which has its own seed.
            group: Rank and world size.
            workers: Wanted number of loading processes; 0 = none.
            resumed_from: Trainer folder of a checkpoint of this stage.
            pin_memory: Whether batches go to pinned memory.
        """
        layout = StreamLayout.new(group, workers) if resumed_from is None else StreamLayout.saved(group, resumed_from)
        settings = dataclasses.replace(self.settings, seed=self.settings.seed + index)
        return StreamLoader(StreamDataset(settings, layout), layout.workers(workers), PREFETCH_FACTOR, pin_memory)


def open_stream(config: Experiment, print_once: Callable[[str], None]) -> tuple[SampleStore, StreamPlan]:
    """The samples that were set aside, none if tools/preprocess.py was not run, and what is streamed."""
    set_aside = load_held_out(config.data_folder, config.data)
    if set_aside is None:
        print_once(
            "data.streaming: no validation samples are set aside, and whether an image stands in several splits is not checked; "
            f"{command('tools/preprocess.py')} does both"
        )
    store, held_out = set_aside or (SampleStore(config.data_folder, is_empty=True), {})
    return store, stream_plan(config.data, held_out)
