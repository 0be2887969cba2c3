"""What all stages of a run share: processes, processor, data, precision, and how long each stage is."""

import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader

from dataset.loading.sample_store import Store
from errors import UsageError
from model.siglip_qwen.assembly import tokens_per_image, vocabulary_rows
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.processor import Processor
from process_group import only_main_speaks
from training.config import Experiment, TrainConfig
from training.data_loading import Batching, KeptFeatures, SampleLengths, TrainingData, measure
from training.distributed import check_world, weights_are_sharded
from training.stages import check_stages

PREFETCHED_BATCHES = 4
"""Batches that each loading process prepares ahead."""


@dataclass(frozen=True)
class Prepared:
    """Everything that stays the same over the stages. validation: None when the data has no such split."""

    config: Experiment
    processes: PartialState
    processor: Processor
    store: Store
    lengths: SampleLengths
    validation: TrainingData | None
    batching: Batching
    bf16: bool
    features: KeptFeatures | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.processes.device
        return device

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.processes.is_main_process:
            print(text, flush=True)


def prepare(config: Experiment) -> Prepared:
    """Check everything that can be checked before a weight is loaded, and measure the samples.

    Raises UsageError for settings that do not fit each other, the data or the machine.
    """
    check_stages(config.train, config.model)
    if config.train.cache_features and config.data.augmentation is not None:
        raise UsageError("train.cache_features: features are kept of unchanged pictures; set it to false, or data.augmentation to null")
    processes = check_world(config.train.processes)
    if not (processes.is_main_process and sys.stderr.isatty()):
        transformers.logging.disable_progress_bar()
    if weights_are_sharded() and config.model.quantization != "none":
        raise UsageError("model.quantization: quantised weights cannot be divided by FSDP or ZeRO-3; launch with multi_gpu.yaml")
    bf16 = use_bf16(config.train, processes.device)
    store = Store(config.data_folder)
    processor = build_processor(config.model)
    batching = Batching.of(config.train, processes.device)
    with only_main_speaks(processes.is_main_process):
        lengths = measure(store, store.indices("train"), processor, "measuring training samples", config.train.questions_together)
        validation_rows = _spread(store.indices("validation"), config.train.evaluate_samples)
        validation = measure(store, validation_rows, processor, "measuring validation samples")
    prepared = Prepared(
        config=config,
        processes=processes,
        processor=processor,
        store=store,
        lengths=lengths,
        validation=TrainingData(store, validation, processor, config.train.seed) if len(validation) else None,
        batching=batching,
        bf16=bf16,
    )
    _report_samples(prepared, validation)
    prepared.say(f"micro-batches: {batching}, products in {'bf16' if bf16 else 'fp32'}")
    return prepared


def build_processor(model: ModelConfig) -> Processor:
    """The processor that a model is trained with. Raises UsageError when a part cannot be loaded or settings do not fit."""
    return Processor.from_parts(
        language=model.language,
        vision=model.vision,
        tokens_per_image=tokens_per_image(model),
        vocabulary=vocabulary_rows(model),
        placeholder=model.placeholder,
        max_tokens=model.max_tokens,
        system_prompt=model.system_prompt,
    )


def _report_samples(prepared: Prepared, validation: SampleLengths) -> None:
    """Say what is trained on. Raises UsageError when that is nothing, or when patience has nothing to go by."""
    for what, lengths in (("training", prepared.lengths), ("validation", validation)):
        dropped = f", {lengths.dropped:,} dropped: nothing to supervise within model.max_tokens" if lengths.dropped else ""
        together = f" in {len(lengths):,} conversations" if len(lengths) < lengths.samples else ""
        prepared.say(f"{lengths.samples:,} {what} samples{together}{dropped}")
    if prepared.processor.pictures.table is None:
        prepared.say("model.vision: its image processor does more than a plain resize; it reads the pictures itself, more slowly")
    if not len(prepared.lengths):
        raise UsageError(f"{prepared.store.folder}: no training samples in it")
    if prepared.validation is None and prepared.config.train.patience is not None:
        raise UsageError(f"train.patience: needs validation samples, and {prepared.store.folder} has none")


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows, evenly spread, so that every source has its share."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def use_bf16(train: TrainConfig, device: torch.device) -> bool:
    """Whether a device trains under bf16 autocast. Raises UsageError where bf16 is asked for and the device has none."""
    able = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if train.precision == "bf16" and not able:
        raise UsageError(f"train.precision: bf16 is asked for, but {device} does not have it; set train.precision=fp32")
    return train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda" and able)


def training_loader(prepared: Prepared, index: int) -> DataLoader:
    """This process's batches of a stage; order and targets of one stage are not those of another."""
    config = prepared.config
    seed, epochs = config.train.seed + index, math.ceil(config.train.stages[index].epochs)
    data = TrainingData(prepared.store, prepared.lengths, prepared.processor, seed, config.data.augmentation, prepared.features)
    return _loader(prepared, data, prepared.lengths, seed, epochs)


def validation_loader(prepared: Prepared) -> DataLoader | None:
    """This process's share of the validation samples."""
    data = prepared.validation
    return _loader(prepared, data, data.lengths, prepared.config.train.seed, 1) if data is not None else None


def _loader(prepared: Prepared, data: TrainingData, lengths: SampleLengths, seed: int, epochs: int) -> DataLoader:
    processes = prepared.processes
    workers = loading_workers(prepared.config.train)
    return DataLoader(
        data,
        batch_sampler=prepared.batching.sampler(lengths, seed, epochs, processes.process_index, processes.num_processes),
        collate_fn=prepared.batching.collator(prepared.processor),
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        pin_memory=prepared.device.type == "cuda",
        # Of its own: drawing from torch's would shift the dropout of a run that is continued.
        generator=torch.Generator().manual_seed(seed),
    )


def loading_workers(train: TrainConfig) -> int:
    """Processes or threads that read pictures for one training process."""
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, share) if train.workers is None else train.workers


def length_of_stage(prepared: Prepared, index: int) -> tuple[int, int]:
    """Optimizer steps of a stage, and of one of its epochs."""
    stage = prepared.config.train.stages[index]
    per_epoch = math.ceil(len(training_loader(prepared, index)) / prepared.config.train.accumulation)
    steps = math.ceil(stage.epochs * per_epoch)
    return min(steps, stage.max_steps or steps), per_epoch
