"""Run all training stages: from a configuration to checkpoints, loss curves and sample predictions.

Every stage starts in the same way: the base model is built and the weights of the latest checkpoint are loaded. So a resumed run
gives the same result as an uninterrupted one.
"""

import gc
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from errors import Interrupted
from model.siglip_qwen import initial_weights
from model.siglip_qwen.initial_weights import InitialWeights
from process_group import ProcessGroup
from training.checkpointing.checkpoint_folders import TRAINER_FOLDER, checkpoint_step
from training.checkpointing.checkpoint_writer import CheckpointWriter
from training.checkpointing.resume import (
    INITIAL_WEIGHTS_KEY,
    STEP_KEYS,
    RunState,
    check_same_settings,
    config_settings,
    data_settings,
    machine_settings,
    read_run_state,
)
from training.checkpointing.stage_model import load_stage_model
from training.checkpointing.starting_point import StartingPoint, starting_point
from training.checkpointing.trainer_state import check_trainer_state
from training.checkpointing.whole_checkpoint import resume_checkpoint
from training.config import Experiment
from training.distributed.launch import weights_are_sharded
from training.feature_cache.feature_extraction import with_cached_features
from training.gradient_checkpointing import Trial, configure_activation_checkpointing, longest_batch
from training.interruption.stop_callback import StopAgreement, StopCallback
from training.interruption.stop_signals import StopSignals
from training.monitoring.console import ConsoleLogger
from training.monitoring.metrics_history import History
from training.monitoring.report_callback import ReportCallback
from training.monitoring.run_cost import print_run_cost
from training.monitoring.throughput import ThroughputMeter, peak_tflops
from training.monitoring.time_estimate import TimeEstimate
from training.monitoring.trackers import Tracker, closing
from training.out_of_memory import explain_out_of_memory, keep_freed_host_memory
from training.preflight import SAMPLES_FILE, check_before_loading
from training.run_report import panel_generator, start_trackers, write_results
from training.run_setup import (
    Machine,
    RunSetup,
    setup_machine,
    setup_run,
    stage_length,
    training_loader,
    validation_loader,
    with_resumed_batching,
)
from training.stage_trainer import StageTrainer, training_arguments
from training.stages import Stage, describe_trained
from training.unreadable_images import UnreadableImages, UnreadableLimit


@dataclass(frozen=True)
class TrainingRun:
    """What all stages of a run share."""

    setup: RunSetup
    history: History
    """Metrics of the run so far; each stage adds its own."""
    settings: dict[str, Any]
    """Settings that go into every checkpoint (see training.checkpointing.resume)."""
    signals: StopSignals
    agreement: StopAgreement
    time: TimeEstimate
    trackers: list[Tracker]
    """Where rank 0 reports to; empty on the other ranks."""


def train(config: Experiment, resume: str | None = None, signals: StopSignals | None = None) -> Path:
    """Run all stages, or those that are left after a checkpoint; returns the folder of the last checkpoint.

    Args:
        resume: None starts from scratch, "auto" resumes from the latest complete checkpoint, otherwise a checkpoint folder.
        signals: Requests to stop; None when the caller handles none.

    Raises:
        UsageError: settings contradict each other, the data or the machine.
        TesseraError: training fails.
        Interrupted: a signal ended the run, after a checkpoint if a step had been done.
    """
    check_before_loading(config, resume)
    machine = setup_machine(config)
    checkpoint = resume_checkpoint(config.checkpoint_folder, resume, machine.partial_state, machine.print_once)
    state = read_run_state(checkpoint / TRAINER_FOLDER) if checkpoint else None
    if checkpoint and state:
        check_trainer_state(checkpoint / TRAINER_FOLDER, state.finished)
    initial = initial_weights.find_given(config.train.init_from, required=checkpoint is None)
    current_settings = _settings(config, machine, initial, checkpoint, state)
    if state:
        machine = with_resumed_batching(machine, config.train, state.settings)
    trackers = start_trackers(config, machine, state, current_settings)
    with closing(trackers):
        run_setup = setup_run(config, machine, None if checkpoint else initial)
        lengths = [stage_length(run_setup, index) for index in range(len(config.train.stages))]
        start = starting_point(checkpoint, state, config.train.stages, lengths)
        if checkpoint:
            run_setup.print_once("\n".join([f"resuming from {checkpoint}", *([start.note] if start.note else [])]))
        done = state.step - start.first_step if state and not state.finished else 0
        print_run_cost(run_setup, {index: lengths[index] - done * (index == start.stage) for index in range(start.stage, len(lengths))})
        if config.train.cache_vision_features and start.stage < len(lengths):
            run_setup = with_cached_features(run_setup, checkpoint or (initial.folder if initial else None))
        if run_setup.device.type == "cpu" and sys.platform == "linux":
            keep_freed_host_memory()
        run = TrainingRun(
            setup=run_setup,
            history=History(list(state.history) if state else []),
            settings=current_settings,
            signals=signals or StopSignals(),
            agreement=StopAgreement(machine.partial_state.num_processes),
            time=TimeEstimate(),
            trackers=trackers,
        )
        checkpoint = _run_stages(run, start, lengths, checkpoint)
    if machine.partial_state.is_main_process:
        write_results(run_setup, checkpoint, run.history)
    return checkpoint


def _settings(
    config: Experiment, machine: Machine, initial: InitialWeights | None, checkpoint: Path | None, state: RunState | None
) -> dict[str, Any]:
    """The settings of this run, checked against the checkpoint's: first what costs nothing, then the hash of the samples."""
    known = {
        **config_settings(config),
        **machine_settings(machine.partial_state.num_processes, machine.batching.packed, machine.precision),
    }
    if checkpoint and state:
        check_same_settings(checkpoint, state, known)
    known |= data_settings(config.data_folder / SAMPLES_FILE)
    if initial is not None:
        known[INITIAL_WEIGHTS_KEY] = f"{initial.folder}, SHA-256 {initial.digest}"
    if checkpoint and state:
        check_same_settings(checkpoint, state, known)
        # What an optimizer step consists of stays as it was where the run began.
        known |= {key: state.settings[key] for key in STEP_KEYS}
        if initial is None and INITIAL_WEIGHTS_KEY in state.settings:  # its folder is gone, and needed no more
            known[INITIAL_WEIGHTS_KEY] = state.settings[INITIAL_WEIGHTS_KEY]
    return known


def _run_stages(run: TrainingRun, start: StartingPoint, lengths: list[int], checkpoint: Path | None) -> Path:
    """Train the stages from the starting point on; returns the last checkpoint.

    lengths: optimizer steps of each stage; checkpoint: holds the weights to start from.
    """
    stages, first_step = run.setup.config.train.stages, start.first_step
    for index in range(start.stage, len(lengths)):
        resuming = start.resuming and index == start.stage
        stage = Stage(stages[index], index, first_step, lengths[index], start.steps_before if resuming else None)
        checkpoint = _run_stage(run, stage, first_step + sum(lengths[index:]), checkpoint, resuming)
        first_step = checkpoint_step(checkpoint)
    assert checkpoint is not None  # there is at least one stage
    return checkpoint


def _run_stage(run: TrainingRun, stage: Stage, total: int, checkpoint: Path | None, resuming: bool) -> Path:
    """Train one stage and return its last checkpoint.

    Args:
        total: Optimizer steps of all stages.
        checkpoint: Holds the weights to start from; None starts from the base model.
        resuming: Whether `checkpoint` was written during this stage and holds its optimizer state.
    """
    run_setup, config, partial_state = run.setup, run.setup.config, run.setup.partial_state
    set_seed(config.train.seed)
    with explain_out_of_memory("loading the model"):
        model = load_stage_model(run_setup, stage, checkpoint)
    run_setup.print_once(f"stage {stage.config.name}: {stage.steps:,} steps, {describe_trained(model)}")
    stop = StopCallback(run.signals, run.agreement)
    trainer = _trainer(run, stage, model, stop)
    if partial_state.is_main_process:
        done = read_run_state(checkpoint / TRAINER_FOLDER).step if checkpoint else 0
        trainer.add_callback(ConsoleLogger(done, total, run.time))
        trainer.add_callback(ReportCallback(run.trackers, None if weights_are_sharded() else panel_generator(run_setup)))
    trainer.add_callback(stop)
    # Trainer seeds all ranks alike; dropout masks should differ between ranks.
    set_seed(config.train.seed + stage.index + 1000 * partial_state.process_index)
    with explain_out_of_memory("training"), run.signals.explaining_errors():
        _configure_activation_checkpointing(run_setup, trainer, model)
        trainer.train_stage(checkpoint if resuming else None)
    last = config.checkpoint_folder / f"checkpoint-{trainer.step}"
    if stop.number:
        raise Interrupted(stop.number, f"{signal.Signals(stop.number).name} after step {trainer.step:,}: {last} is written")
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return last


def _trainer(run: TrainingRun, stage: Stage, model: nn.Module, stop: StopCallback) -> StageTrainer:
    """The trainer of a stage, with this rank's batches."""
    run_setup, config = run.setup, run.setup.config
    folder, validation = config.checkpoint_folder, validation_loader(run_setup)
    return StageTrainer(
        model,
        training_arguments(
            config.train,
            stage,
            folder,
            micro_batches=run_setup.batching.step.micro_batches,
            precision=run_setup.precision,
            device=run_setup.device,
            validate=validation is not None,
        ),
        train=config.train,
        stage=stage,
        loader=training_loader(run_setup, stage.index),
        validation=validation,
        history=run.history,
        meter=_meter(run_setup, model),
        family=run_setup.family,
        processor=run_setup.processor,
        checkpoints=CheckpointWriter(folder, config.train.save_total_limit, run_setup.partial_state),
        unreadable=_unreadable_images(run_setup, run.history),
        settings=run.settings,
        tracker_runs={tracker.name: tracker.run_id for tracker in run.trackers if tracker.run_id},
        stop=stop,
    )


def _unreadable_images(run_setup: RunSetup, history: History) -> UnreadableImages:
    """The counter of unreadable images, with those that the history holds already."""
    limit = UnreadableLimit(run_setup.config.train.max_unreadable_images, len(run_setup.used_images()))
    group = ProcessGroup(run_setup.partial_state.process_index, run_setup.partial_state.num_processes)
    return UnreadableImages(history, limit, group, run_setup.print_once)


def _configure_activation_checkpointing(run_setup: RunSetup, trainer: StageTrainer, model: nn.Module) -> None:
    """Choose the layers that recompute their activations, before the first optimizer step."""

    trial = Trial(lambda: longest_batch(trainer.get_train_dataloader(), run_setup.batching.packed), trainer.run_trial_step)
    num_processes = run_setup.partial_state.num_processes
    chosen = configure_activation_checkpointing(
        model, run_setup.config.train, trial, run_setup.device, num_processes, weights_are_sharded()
    )
    run_setup.print_once(f"gradient checkpointing: {chosen}")


def _meter(run_setup: RunSetup, model: nn.Module) -> ThroughputMeter:
    peak_is_known = run_setup.precision != "fp32" and run_setup.device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(run_setup.device)) if peak_is_known else None
    return ThroughputMeter(run_setup.family.step_flops(model, run_setup.features is not None), run_setup.device, peak)
