"""Setup shared by all stages of a run: process group, processor, data, precision, and the length of each stage."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader

from atomic_io import write_text
from cpu_cores import available_cores
from dataset.config import DataConfig
from dataset.loading.augmentation import moves_boxes
from dataset.loading.multi_turn import balance_by_category
from dataset.loading.recorded_prompts import conflicting_prompts, recorded_prompts
from dataset.loading.sample_store import SampleStore
from dataset.loading.samplers import DistributedBatchSampler
from dataset.loading.source_mix import SourceMix, describe_shares
from dataset.source_config import source_names
from errors import UsageError
from model.family import Collate, Family, family
from model.kernels.autocast import Precision
from model.processors.sample_processor import SampleProcessor
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.initial_weights import InitialWeights, check_compatible
from process_group import ProcessGroup, main_process_only
from training.compile_policy import check_step_settings
from training.config import Experiment, StageConfig, TrainConfig
from training.data_loading import Batching, CachedFeatures, SampleLengths, TrainingData, evenly_spaced, measure_lengths
from training.distributed.launch import check_shardable, check_world_size, unused_gpus, weights_are_sharded
from training.interruption.stop_signals import ignore_stop_signals
from training.optimization.precision import resolve_precision
from training.preflight import check_settings
from training.streaming.stream_setup import PREFETCH_FACTOR, StreamSetup, open_stream


@dataclass(frozen=True)
class Machine:
    """What the launcher and the device decide, known before any sample is read."""

    partial_state: PartialState
    batching: Batching
    precision: Precision
    """Of matrix products."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.partial_state.device
        return device

    def print_once(self, text: str) -> None:
        """Print a line on rank 0 only."""
        if self.partial_state.is_main_process:
            print(text, flush=True)


@dataclass(frozen=True)
class RunSetup(Machine):
    """Everything that all stages share.

    validation: None when the data has no validation split; stream: what is read while training (data.streaming); then `lengths` is empty
    and `store` has only what was set aside; initial_weights: None without train.init_from, and in a resumed run.
    """

    config: Experiment
    processor: SampleProcessor
    store: SampleStore
    lengths: SampleLengths
    validation: TrainingData | None
    stream: StreamSetup | None = None
    features: CachedFeatures | None = None
    initial_weights: InitialWeights | None = None

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family(self.config.model.family)

    def used_images(self) -> set[int]:
        """Ids of the images of all training and validation samples."""
        image_ids = self.store.column("image_ids")
        splits = [self.lengths] if self.validation is None else [self.lengths, self.validation.lengths]
        return {i for lengths in splits for members in lengths.conversations for member in members for i in image_ids[member.row]}


@dataclass(frozen=True)
class Stage:
    """A stage and its position in the run."""

    config: StageConfig
    index: int
    """Index in train.stages."""
    first_step: int
    """Optimizer steps of all earlier stages."""
    steps: int
    """Optimizer steps of this stage."""
    steps_before: int | None = None
    """Optimizer steps of this stage when the checkpoint to resume from was written, where that was another number."""


def setup_machine(config: Experiment) -> Machine:
    """Join the process group and resolve what depends on the device. Raises UsageError for what this machine cannot do."""
    partial_state = check_world_size(config.train.num_processes)
    if not (partial_state.is_main_process and sys.stderr.isatty()):
        transformers.logging.disable_progress_bar()
    check_shardable(config.model)
    precision = resolve_precision(config.train, partial_state.device)
    check_step_settings(config.train, partial_state.device, weights_are_sharded())
    can_pack = "packed" in config.model.abilities
    batching = Batching.of(config.train, partial_state.device, precision, partial_state.num_processes, can_pack)
    return Machine(partial_state, batching, precision)


def setup_run(config: Experiment, machine: Machine | None = None, initial: InitialWeights | None = None) -> RunSetup:
    """Measure the samples in tokens and check what depends on them, before weights are loaded.

    machine: what `setup_machine` returned, None calls it and checks the configuration first; initial: weights to start from, which must
    fit the model. Raises UsageError for settings that contradict each other, the data or the machine.
    """
    if machine is None:
        check_settings(config)
        machine = setup_machine(config)
    store, plan = (SampleStore(config.data_folder), None) if not config.data.streaming else open_stream(config, machine.print_once)
    prompts = recorded_prompts(store) if plan is None else plan.prompts
    processor = family(config.model.family).processor(config.model, prompts)
    max_questions = config.train.max_questions_per_conversation
    if max_questions > 1 and not processor.joins_questions:
        raise UsageError(
            f"train.max_questions_per_conversation: {max_questions}, but of a conversation this model is trained on the last answer alone; "
            "set it to 1"
        )
    if initial is not None:
        trains_connector = any("connector" in stage.train for stage in config.train.stages)
        check_compatible(initial, siglip_qwen_settings(config.model, "train.init_from"), processor, trains_connector=trains_connector)
    with main_process_only(machine.partial_state.is_main_process):
        lengths = SampleLengths([], ()) if plan is not None else _measured(config, store, processor)
        validation_rows = store.indices("validation")
        validation_rows = validation_rows[evenly_spaced(len(validation_rows), config.train.eval_samples)]
        validation = measure_lengths(store, validation_rows, processor, "measuring validation samples")
    run_setup = RunSetup(
        **vars(machine),
        config=config,
        processor=processor,
        store=store,
        lengths=lengths,
        validation=TrainingData(store, validation, processor, config.train.seed, replace_unreadable=False) if len(validation) else None,
        stream=None if plan is None else StreamSetup.of(plan, config, machine.batching, processor, _collate(config, machine, processor)),
        initial_weights=initial,
    )
    _report_samples(run_setup, validation)
    _report_mix(run_setup)
    if (notice := unused_gpus(machine.partial_state)) is not None:
        run_setup.print_once(notice)
    run_setup.print_once(f"micro-batches: {machine.batching}, matrix products in {machine.precision}")
    return run_setup


def _measured(config: Experiment, store: SampleStore, processor: SampleProcessor) -> SampleLengths:
    """The training samples with their lengths, balanced or mixed as the configuration says."""
    max_questions = config.train.max_questions_per_conversation
    boxes_move = moves_boxes(config.data.augmentation)
    lengths = measure_lengths(store, store.indices("train"), processor, "measuring training samples", max_questions, boxes_move)
    if config.data.balance == "category":
        lengths = _balanced(store, lengths)
    return dataclasses.replace(lengths, mix=_source_mix(config.data, store, lengths))


def _report_samples(run_setup: RunSetup, validation: SampleLengths) -> None:
    """Print the number of samples. Raises UsageError without training samples, or for early stopping without validation samples."""
    measured = {"training": run_setup.lengths, "validation": validation} if run_setup.stream is None else {"validation": validation}
    for split_name, lengths in measured.items():
        dropped = _list_dropped(run_setup, split_name, lengths.dropped)
        joined_note = f" in {len(lengths):,} conversations" if len(lengths) < lengths.samples else ""
        run_setup.print_once(f"{lengths.samples:,} {split_name} samples{joined_note}{dropped}")
    for line in conflicting_prompts(run_setup.store):
        run_setup.print_once(line)
    if getattr(run_setup.processor, "reads_slowly", False):
        run_setup.print_once("model.vision: its image processor does more than a plain resize; it is called for every image, more slowly")
    folder, num_processes = run_setup.store.folder, run_setup.partial_state.num_processes
    if run_setup.stream is None and not len(run_setup.lengths):
        raise UsageError(f"{folder}: contains no training samples")
    if run_setup.stream is None and len(run_setup.lengths) < num_processes:
        raise UsageError(f"{folder}: {len(run_setup.lengths)} training samples for {num_processes} processes; use fewer processes")
    if 0 < len(validation) < num_processes:
        run_setup.print_once(f"{len(validation)} validation samples for {num_processes} processes: some have none to validate on")
    if run_setup.validation is None and run_setup.config.train.early_stopping_patience is not None:
        raise UsageError(f"train.early_stopping_patience: needs validation samples, and {folder} has none")


def _list_dropped(run_setup: RunSetup, split_name: str, dropped: Sequence[str]) -> str:
    """Write the ids of dropped samples next to the checkpoints. Returns a clause that counts them; empty if there are none."""
    path = run_setup.config.checkpoint_folder / f"dropped_{split_name}.txt"
    if run_setup.partial_state.is_main_process:
        if dropped:
            write_text(path, "".join(f"{sample_id}\n" for sample_id in dropped))
        else:
            path.unlink(missing_ok=True)
    reason = "nothing to supervise within model.max_length, or images that the model does not take"
    return f", {len(dropped):,} dropped: {reason} (all ids: {path})" if dropped else ""


def _balanced(store: SampleStore, lengths: SampleLengths) -> SampleLengths:
    """Training conversations, equally many of each category. Raises UsageError when no sample has one."""
    categories = store.column("category")
    if not any(categories):
        raise UsageError(f"data.balance: no sample in {store.folder} has a category; give the records of a source a field `category`")
    return SampleLengths(balance_by_category(lengths.conversations, categories), lengths.dropped)


def _source_mix(data: DataConfig, store: SampleStore, lengths: SampleLengths) -> SourceMix | None:
    """How much each source takes part in an epoch. A conversation belongs to the source of its first sample."""
    if data.mix_settings() is None:
        return None
    number = {name: i for i, name in enumerate(source_names(data.sources))}
    names = store.column("source")
    if unknown := sorted(set(names) - number.keys()):
        raise UsageError(f"{store.folder}: has samples of the source '{unknown[0]}', which data.sources does not name")
    source = np.array([number[names[conversation[0].row]] for conversation in lengths.conversations], dtype=np.int64)
    return SourceMix.of(data, source, np.array([len(conversation) for conversation in lengths.conversations]))


def _report_mix(run_setup: RunSetup) -> None:
    """Print the share that each source has in the first epoch."""
    mix, seed = run_setup.lengths.mix, run_setup.config.train.seed
    if mix is not None:
        indices = run_setup.lengths.epoch_indices(seed, 0)
        shares = describe_shares(source_names(run_setup.config.data.sources), mix.shares(indices))
        run_setup.print_once(f"mix: {int(mix.samples[indices].sum()):,} samples an epoch: {shares}")


def training_loader(run_setup: RunSetup, index: int, resumed_from: Path | None = None) -> DataLoader:
    """This rank's training batches of a stage, all epochs; each stage has its own seed for sample order and targets.

    resumed_from: trainer folder of a checkpoint of this stage. Only a stream begins there; of other data, the trainer skips batches.
    """
    config = run_setup.config
    if run_setup.stream is not None:
        group = ProcessGroup(run_setup.partial_state.process_index, run_setup.partial_state.num_processes)
        return run_setup.stream.loader(index, group, num_loader_workers(config.train), resumed_from, run_setup.device.type == "cuda")
    seed = config.train.seed + index
    data = TrainingData(run_setup.store, run_setup.lengths, run_setup.processor, seed, config.data.augmentation, run_setup.features)
    return _loader(run_setup, data, training_sampler(run_setup, index))


def training_sampler(run_setup: RunSetup, index: int) -> DistributedBatchSampler:
    """The batch sampler of `training_loader`."""
    train, rank = run_setup.config.train, run_setup.partial_state.process_index
    return run_setup.batching.sampler(run_setup.lengths, train.seed + index, train.stages[index].epochs, rank)


def _collate(config: Experiment, machine: Machine, processor: SampleProcessor) -> Collate:
    """Makes the batches of the model's family."""
    return family(config.model.family).collator(processor, machine.batching.collator(processor))


def validation_loader(run_setup: RunSetup) -> DataLoader | None:
    """This rank's share of the validation samples; None without a validation split."""
    data = run_setup.validation
    if data is None:
        return None
    sampler = run_setup.batching.validation_sampler(data.lengths, data.seed, run_setup.partial_state.process_index)
    return _loader(run_setup, data, sampler)


def _loader(run_setup: RunSetup, data: TrainingData, sampler: DistributedBatchSampler) -> DataLoader:
    num_workers = num_loader_workers(run_setup.config.train)
    return DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=_collate(run_setup.config, run_setup, run_setup.processor),
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        pin_memory=run_setup.device.type == "cuda",
        # Its own generator: torch's global one would shift the dropout masks of a resumed run.
        generator=torch.Generator().manual_seed(data.seed),
    )


def num_loader_workers(train: TrainConfig) -> int:
    """DataLoader workers (or threads) that load images for one rank."""
    cores_per_process = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, cores_per_process) if train.dataloader_num_workers is None else train.dataloader_num_workers


def stage_length(run_setup: RunSetup, index: int) -> int:
    """Optimizer steps of a stage."""
    stage = run_setup.config.train.stages[index]
    if run_setup.stream is not None:
        return stage.max_steps or 0  # checked before: it is given
    steps = training_sampler(run_setup, index).steps
    return min(steps, stage.max_steps or steps)
