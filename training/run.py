"""Run all training stages: from a configuration to checkpoints, loss curves and sample predictions.

Every stage starts in the same way: the base model is built and the weights of the latest checkpoint are loaded. So a resumed run
gives the same result as an uninterrupted one.
"""

import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import DataLoader
from transformers import set_seed

from dataset.streaming.source_records import Share
from errors import Interrupted
from model.siglip_qwen import initial_weights
from process_group import ProcessGroup
from training.checkpointing.checkpoint_writer import CheckpointWriter
from training.checkpointing.resume import (
    INITIAL_WEIGHTS_KEY,
    STEP_KEYS,
    TRAINER_FOLDER,
    check_same_settings,
    checkpoint_step,
    config_settings,
    data_settings,
    machine_settings,
    read_run_state,
    streamed_data_settings,
)
from training.checkpointing.stage_model import describe_trained, load_stage_model
from training.checkpointing.starting_point import StartingPoint, starting_point
from training.checkpointing.trainer_state import check_trainer_state
from training.checkpointing.whole_checkpoint import resume_checkpoint
from training.checkpointing.world_size_change import with_resumed_batching
from training.config import Experiment
from training.distributed.launch import weights_are_sharded
from training.feature_cache.feature_extraction import with_cached_features
from training.gradient_checkpointing import Trial, configure_activation_checkpointing, longest_batch
from training.interruption.stop_signals import StopSignals
from training.monitoring.console import ConsoleLogger, TimeEstimate
from training.monitoring.metrics_history import History
from training.monitoring.run_cost import print_run_cost
from training.monitoring.throughput import ThroughputMeter, peak_tflops_of
from training.monitoring.trackers import ReportCallback, closing
from training.out_of_memory import explain_out_of_memory, keep_freed_host_memory
from training.preflight import SAMPLES_FILE, check_before_loading
from training.run_report import panel_generator, start_trackers, write_results
from training.run_setup import RunSetup, Stage, setup_machine, setup_run, stage_length, training_loader, validation_loader
from training.stage_callback import StopCallback
from training.stage_trainer import StageParts, StageTrainer
from training.streaming.batch_stream import BatchStream
from training.streaming.stream_loader import StreamLoader
from training.streaming.stream_progress import StreamProgress
from training.unreadable_images import UnreadableImages, UnreadableLimit


class TrainingRun:
    """A run: `train` prepares it, trains its stages one after the other, and writes the results.

    Creating one checks the configuration, joins the process group, and reads what a resumed run goes on from.

    resume: None starts from scratch, "auto" resumes from the latest complete checkpoint, otherwise a checkpoint folder; signals:
    requests to stop, None when the caller handles none. Raises UsageError for settings that contradict each other or the machine.
    """

    setup: RunSetup
    """Data, processor and batches, which all stages share; set by `train`."""
    lengths: list[int]
    """Optimizer steps of each stage."""
    start: StartingPoint

    def __init__(self, config: Experiment, resume: str | None = None, signals: StopSignals | None = None):
        check_before_loading(config, resume)
        self.config, self.signals = config, signals or StopSignals()
        self.machine = setup_machine(config)
        self.checkpoint = resume_checkpoint(config.checkpoint_folder, resume, self.machine.partial_state, self.machine.print_once)
        self.state = read_run_state(self.checkpoint / TRAINER_FOLDER) if self.checkpoint else None
        if self.checkpoint and self.state:
            check_trainer_state(self.checkpoint / TRAINER_FOLDER, self.state.finished)
        self.initial = initial_weights.find_given(config.train.init_from, required=self.checkpoint is None)
        self.settings = self._checked_settings()
        if self.state:
            self.machine = with_resumed_batching(self.machine, config.train, self.state.settings)
        self.history = History(list(self.state.history) if self.state else [])
        self.stop, self.time = StopCallback(self.signals, self.machine.partial_state.num_processes), TimeEstimate()
        self.trackers = start_trackers(config, self.machine, self.state, self.settings)

    def train(self) -> Path:
        """Train all stages, or those that are left after a checkpoint; returns the folder of the last checkpoint.

        Raises UsageError for settings that contradict the data, TesseraError when training fails, and Interrupted when a signal ended
        the run, after a checkpoint if a step had been done.
        """
        with closing(self.trackers):
            self.setup = self._prepare()
            for stage in self._stages_left():
                self.checkpoint = self.train_stage(stage)
        assert self.checkpoint is not None  # there is at least one stage
        if self.machine.partial_state.is_main_process:
            write_results(self.setup, self.checkpoint, self.history)
        return self.checkpoint

    def train_stage(self, stage: Stage) -> Path:
        """Train one stage, from the weights of the latest checkpoint, and return its last checkpoint."""
        partial_state, resuming = self.setup.partial_state, self.start.resuming and stage.index == self.start.stage
        set_seed(self.config.train.seed)
        with explain_out_of_memory("loading the model"):
            model = load_stage_model(self.setup, stage, self.checkpoint)
        self.setup.print_once(f"stage {stage.config.name}: {stage.steps:,} steps, {describe_trained(model)}")
        resumed_from = self.checkpoint / TRAINER_FOLDER if self.checkpoint and resuming else None
        trainer = self._trainer(stage, model, resumed_from)
        # Trainer seeds all ranks alike; dropout masks should differ between ranks.
        set_seed(self.config.train.seed + stage.index + 1000 * partial_state.process_index)
        with explain_out_of_memory("training"), self.signals.explaining_errors():
            self._configure_activation_checkpointing(trainer, model)
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
        last = self.config.checkpoint_folder / f"checkpoint-{trainer.step}"
        if number := self.stop.number:
            raise Interrupted(number, f"{signal.Signals(number).name} after step {trainer.step:,}: {last} is written")
        trainer.accelerator.free_memory()
        del trainer, model
        clear_device_cache(garbage_collection=True)
        return last

    def _checked_settings(self) -> dict[str, Any]:
        """The settings of this run (see training.checkpointing.resume), which go into every checkpoint, checked against those of the
        checkpoint: first what costs nothing, then the hash of the samples."""
        batching, num_processes = self.machine.batching, self.machine.partial_state.num_processes
        known = {**config_settings(self.config), **machine_settings(num_processes, batching.packed, self.machine.precision)}
        if self.checkpoint and self.state:
            check_same_settings(self.checkpoint, self.state, known)
        data = self.config.data
        known |= streamed_data_settings(data) if data.streaming else data_settings(self.config.data_folder / SAMPLES_FILE)
        if self.initial is not None:
            known[INITIAL_WEIGHTS_KEY] = f"{self.initial.folder}, SHA-256 {self.initial.digest}"
        if self.checkpoint and self.state:
            check_same_settings(self.checkpoint, self.state, known)
            # What an optimizer step consists of stays as it was where the run began.
            known |= {key: self.state.settings[key] for key in STEP_KEYS}
            if self.initial is None and INITIAL_WEIGHTS_KEY in self.state.settings:  # its folder is gone, and needed no more
                known[INITIAL_WEIGHTS_KEY] = self.state.settings[INITIAL_WEIGHTS_KEY]
        return known

    def _prepare(self) -> RunSetup:
        """Measure the data, find where the run goes on, and cache the features of its images if that is configured."""
        config, state, checkpoint = self.config, self.state, self.checkpoint
        setup = setup_run(config, self.machine, None if checkpoint else self.initial)
        self.lengths = [stage_length(setup, index) for index in range(len(config.train.stages))]
        self.start = starting_point(checkpoint, state, config.train.stages, self.lengths)
        if checkpoint:
            setup.print_once("\n".join([f"resuming from {checkpoint}", *([self.start.note] if self.start.note else [])]))
        done = state.step - self.start.first_step if state and not state.finished else 0
        left = range(self.start.stage, len(self.lengths))
        print_run_cost(setup, {index: self.lengths[index] - done * (index == self.start.stage) for index in left})
        if config.train.cache_vision_features and left:
            setup = with_cached_features(setup, checkpoint or (self.initial.folder if self.initial else None))
        if setup.device.type == "cpu" and sys.platform == "linux":
            keep_freed_host_memory()
        return setup

    def _stages_left(self) -> Iterator[Stage]:
        """The stages that are to be trained, each once the one before has written its checkpoint."""
        for index in range(self.start.stage, len(self.lengths)):
            is_first = index == self.start.stage
            first_step = self.start.first_step if is_first or self.checkpoint is None else checkpoint_step(self.checkpoint)
            steps_before = self.start.steps_before if is_first and self.start.resuming else None
            yield Stage(self.config.train.stages[index], index, first_step, self.lengths[index], steps_before)

    def _trainer(self, stage: Stage, model: nn.Module, resumed_from: Path | None) -> StageTrainer:
        """The trainer of a stage, with this rank's batches, and on rank 0 with what reports its progress.

        resumed_from: trainer folder of the checkpoint that the stage goes on from.
        """
        setup, config = self.setup, self.config
        step_flops, peak = setup.family.step_flops(model, setup.features is not None), peak_tflops_of(setup.device, setup.precision)
        loader = training_loader(setup, stage.index, resumed_from)
        parts = StageParts(
            stage=stage,
            loader=loader,
            validation=validation_loader(setup),
            unreadable=self._unreadable_images(),
            history=self.history,
            meter=ThroughputMeter(step_flops, setup.device, peak),
            stream=self._stream_progress(loader),
            checkpoints=CheckpointWriter(config.checkpoint_folder, config.train.save_total_limit, setup.partial_state),
            settings=self.settings,
            tracker_runs={tracker.name: tracker.run_id for tracker in self.trackers if tracker.run_id},
            stop=self.stop,
        )
        trainer = StageTrainer(model, setup, parts)
        if setup.partial_state.is_main_process:
            done = read_run_state(self.checkpoint / TRAINER_FOLDER).step if self.checkpoint else 0
            total = stage.first_step + sum(self.lengths[stage.index :])
            trainer.add_callback(ConsoleLogger(done, total, self.time))
            trainer.add_callback(ReportCallback(self.trackers, None if weights_are_sharded() else panel_generator(setup)))
        trainer.add_callback(self.stop)
        return trainer

    def _stream_progress(self, loader: DataLoader) -> StreamProgress | None:
        setup = self.setup
        if setup.stream is None or not isinstance(loader, StreamLoader):
            return None
        return StreamProgress(loader, setup.stream.plan, self.config.checkpoint_folder, setup.print_once)

    def _unreadable_images(self) -> UnreadableImages:
        """The counter of unreadable images, with those that the history holds already."""
        setup = self.setup
        images = len(setup.used_images())
        if setup.stream is not None:  # as many as will be read, as far as that is known
            images += round(setup.stream.samples_per_batch * setup.batching.step.batches * sum(self.lengths))
        limit = UnreadableLimit(self.config.train.max_unreadable_images, images)
        group = ProcessGroup(setup.partial_state.process_index, setup.partial_state.num_processes)
        return UnreadableImages(self.history, limit, group, setup.print_once)

    def _configure_activation_checkpointing(self, trainer: StageTrainer, model: nn.Module) -> None:
        """Choose the layers that recompute their activations, before the first optimizer step."""
        setup = self.setup
        trial = Trial(partial(self._longest_batch, trainer), trainer.run_trial_step)
        num_processes = setup.partial_state.num_processes
        chosen = configure_activation_checkpointing(model, self.config.train, trial, setup.device, num_processes, weights_are_sharded())
        setup.print_once(f"gradient checkpointing: {chosen}")

    def _longest_batch(self, trainer: StageTrainer) -> dict[str, Any]:
        if self.setup.stream is not None:
            return BatchStream(self.setup.stream.settings, Share()).longest_batch()
        return longest_batch(trainer.get_train_dataloader(), self.setup.batching.packed)
