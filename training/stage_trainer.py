"""One training stage on transformers' Trainer.

Trainer does the loop, gradient accumulation, the loss as a mean over the supervised tokens of an optimizer step on all ranks,
gradient clipping and random states. This subclass brings parameter groups with their own learning rates, the schedule, the data
loaders, a validation loss per token, throughput metrics, and checkpoints whose step numbers continue over the stages.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, TrainerControl, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dataset.loading.collators import UNREADABLE_IMAGES
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import TesseraError
from model.kernels.compile import eager_mode
from model.param_groups import unwrapped
from training.checkpointing.checkpoint_writer import CheckpointWriter
from training.checkpointing.resume import RunState
from training.checkpointing.starting_point import TRAINER_STATE_FILE
from training.checkpointing.trainer_state import NamedStateTrainer
from training.distributed.sharding import configure_fsdp, gather_full_state_dict, reshard_model
from training.gradient_checkpointing import allocate_gradients
from training.monitoring.metrics_history import History, best_evaluation
from training.monitoring.throughput import ThroughputMeter
from training.optimization.loss_scaling import LossScalingTrainer
from training.optimization.lr_scheduler import move_to_schedule, num_warmup_steps, rate_factor
from training.optimization.optimizers import build_optimizer, optimizer_param_groups
from training.run_setup import RunSetup, Stage
from training.stage_callback import StageCallback, StopCallback
from training.streaming.stream_progress import StreamProgress
from training.unreadable_images import UnreadableImages


@dataclass(frozen=True)
class StageParts:
    """What a stage works with besides its model."""

    stage: Stage
    loader: DataLoader
    """This rank's training batches."""
    validation: DataLoader | None
    """This rank's validation batches; None for no validation."""
    unreadable: UnreadableImages
    """Counts the images that cannot be read, over all stages."""
    history: History
    """Metrics of the run so far; the stage adds its own."""
    meter: ThroughputMeter
    stream: StreamProgress | None
    """What is counted while the data are streamed; None for merged data."""
    checkpoints: CheckpointWriter
    settings: dict[str, Any]
    """Settings that go into every checkpoint (see training.checkpointing.resume)."""
    tracker_runs: dict[str, str]
    """Run ids of the trackers, which go into every checkpoint."""
    stop: StopCallback
    """Ends the stage after a signal. The caller adds it, after all other callbacks."""


class StageTrainer(LossScalingTrainer, NamedStateTrainer):
    """Trains one stage.

    model: holds the weights to start from; its trainable parameters are those of the stage. run: settings, family and processor.
    """

    control: TrainerControl
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, model: PreTrainedModel, run: RunSetup, parts: StageParts):
        self._train, self._family, self._processor = run.config.train, run.family, run.processor
        self._parts, self._stage = parts, parts.stage
        self._stage_callback = StageCallback(parts.stage, parts.history, self._train.early_stopping_patience)
        # Quantised weights are frozen; Trainer would refuse them when only the connector is trained.
        unwrapped(model).is_quantized = False
        # The family divides its loss by the supervised tokens of the step, whatever the model's own class would do.
        unwrapped(model).accepts_loss_kwargs = True
        unwrapped(model).loss_type = "ForCausalLM"
        validation = None if parts.validation is None else parts.validation.dataset
        arguments = training_arguments(run, parts.stage, validate=validation is not None)
        super().__init__(model, arguments, train_dataset=parts.loader.dataset, eval_dataset=validation)
        if self.is_fsdp_enabled:
            configure_fsdp(self.accelerator.state.fsdp_plugin, model)
        self.remove_callback(PrinterCallback)
        self.add_callback(self._stage_callback)

    @property
    def step(self) -> int:
        """Optimizer steps done so far, over all stages."""
        return self._stage.first_step + int(self.state.global_step)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage, whose weights the model holds already."""
        self._parts.meter.start()
        return super().train(*args, **kwargs)

    def run_trial_step(self, batch: dict[str, Any]) -> None:
        """A forward and a backward pass as in training; gradients are discarded."""
        self.model.train()
        allocate_gradients(self.model)
        with self.accelerator.autocast():
            loss = self._family.loss(self.model, self._prepare_inputs(batch), 1)
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            groups = optimizer_param_groups(self.model if model is None else model, self._stage.config, self._train)
            self.optimizer = build_optimizer(self._train, groups, self.args.device, scaled=self.args.fp16)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            warmup_steps = num_warmup_steps(self._train.warmup_steps, num_training_steps)
            factor = partial(rate_factor, kind=self._train.lr_scheduler_type, warmup_steps=warmup_steps, steps=num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._stage.steps_before is None:
            return
        before, after = move_to_schedule(self.lr_scheduler)
        if self.is_world_process_zero():
            rates = ", ".join(f"{name} {before[name]:.2e} -> {after[name]:.2e}" for name in after)
            length = f"{self._stage.steps:,} steps instead of {self._stage.steps_before:,}"
            at, kind = self.lr_scheduler.last_epoch, self._train.lr_scheduler_type
            schedule = f"step {at:,} of the {kind} schedule over all {self._stage.steps:,}"
            print(f"stage {self._stage.config.name}: {length}; the learning rate goes on at {schedule}: {rates}", flush=True)

    def get_train_dataloader(self) -> DataLoader:
        """The loader unchanged: its batch sampler already shards batches by rank."""
        return self._parts.loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[dict[str, Any]], Any]:
        # The number of supervised tokens is known on the host; only the sum over ranks needs the device.
        count_device = device if self.args.world_size > 1 else torch.device("cpu")
        with self._parts.meter.waiting():
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, count_device)
        for batch in batches:
            self._parts.meter.count(batch)
        unreadable = [image for batch in batches for image in batch.pop(UNREADABLE_IMAGES, ())]
        self._parts.unreadable.add_step(unreadable, self.step + 1, self._stage.config.name)
        # Places of unreadable images may stay empty; a step of nothing else must not divide by zero.
        return batches, items.clamp(min=1) if isinstance(items, torch.Tensor) else items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device, without blocking for pinned memory, and normalise uint8 pixels there."""
        inputs = {key: value for key, value in inputs.items() if key != UNREADABLE_IMAGES}
        if self.is_deepspeed_enabled:
            prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        else:
            device = self.args.device
            prepared = {key: value.to(device, non_blocking=True) if hasattr(value, "to") else value for key, value in inputs.items()}
        return self._processor.normalize(prepared)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The family's loss, a sum over supervised tokens divided by those of the whole optimizer step, on all ranks.

        Gradients are averaged over ranks, so the loss is multiplied by their number.
        """
        loss = self._family.loss(model, inputs, num_items_in_batch) * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Add a log step to the history; Trainer's summary at the end of a stage is ignored.

        Raises TesseraError when the loss or the gradient norm is not finite.
        """
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise TesseraError(
                f"step {self.step}: the loss is {logs['loss']}, the gradient norm {logs['grad_norm']}; lower train.learning_rate"
            )
        self._collect()
        rates = asdict(self._parts.meter.read(lambda counts: self.accelerator.gather(counts[None].to(self.args.device)).cpu()))
        self._log_row(
            loss=logs["loss"],
            grad_norm=logs["grad_norm"],
            **self.scaling_metrics(),
            **self._parts.unreadable.metrics(),
            **self._stage_callback.learning_rates,
            **{key: value for key, value in rates.items() if value is not None},
        )

    def _collect(self) -> None:
        """Name unreadable images and dropped records of all ranks. A collective operation."""
        self._parts.unreadable.collect(self.step, self._stage.config.name)
        if self._parts.stream is not None:
            self._parts.stream.collect()

    def _log_row(self, **measured: Any) -> None:
        row = {"step": self.step, "stage": self._stage.config.name, **measured}
        self._parts.history.rows.append(row)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, row)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """Validation loss: the mean over all supervised tokens of the validation samples, in nats per token."""
        assert self._parts.validation is not None  # else Trainer is not told to evaluate
        with self._parts.meter.paused(), eager_mode(self.model):
            self.model_wrapped.eval()
            sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
            for batch in self._parts.validation:
                unreadable = batch.get(UNREADABLE_IMAGES, ())
                self._parts.unreadable.add(unreadable)
                inputs = self._prepare_inputs(batch)
                with torch.no_grad():
                    sums[0] += self._family.loss(self.model_wrapped, inputs, 1)
                sums[1] += (inputs["labels"] != IGNORE_INDEX).sum()
                sums[2] += len({image.sample_id for image in unreadable})
            reshard_model(self.model_wrapped)
            self._parts.unreadable.collect(self.step, self._stage.config.name)
            loss, tokens, left_out = self.accelerator.reduce(sums, "sum").tolist()
            if not tokens:
                raise TesseraError(f"step {self.step}: not a single image of the validation samples can be read any more")
            metrics = {"eval_loss": loss / tokens, "eval_tokens": int(tokens), **({"eval_left_out": int(left_out)} if left_out else {})}
            self._log_row(**metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        if self._parts.stop.number and self.control.should_evaluate and not self._finished:
            # The time that is left may be shorter than an evaluation; the checkpoint is written again after it.
            self._save_checkpoint(model, trial)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)

    @property
    def _finished(self) -> bool:
        """Whether the stage has ended: all its steps are done, or it stopped early. A stage that a signal stops has not."""
        return int(self.state.global_step) >= self._stage.steps or self._stage_callback.stopped_early

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        finished, another_follows = self._finished, self._stage.index + 1 < len(self._train.stages)
        if finished:
            self.check_trained()
        self._collect()
        done = (self._stage.index, self._stage.first_step, self.step, finished)
        state = RunState(*done, self._parts.settings, self._parts.history.rows, self._parts.tracker_runs)
        evaluations = self._parts.history.validation(self._stage.config.name)
        best_step = best_evaluation(evaluations)[0] if evaluations and self._train.early_stopping_patience is not None else None
        with self._parts.meter.paused():
            if finished and best_step not in (None, self.step):
                self._parts.checkpoints.write_from_step(state, best_step)
                return
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            weights = gather_full_state_dict(self.model, keep=self.args.should_save) if sharded else None
            # The last stage keeps its trainer state: it may become longer on a resume.
            save_trainer = None if finished and another_follows else self._save_trainer
            self._parts.checkpoints.write(state, lambda folder: self._save_model(folder, weights), save_trainer, best_step)

    def _save_model(self, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
        # Only rank 0 writes; with ZeRO-3's loading mode left on, it would wait for the other ranks.
        unset_hf_deepspeed_config()
        self._family.save(self.model, folder, weights)
        self._processor.save(folder)

    def _save_trainer(self, folder: Path) -> None:
        """Save what the next optimizer step depends on besides the weights: optimizer, schedule, scaler, random states."""
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self._parts.stream is not None:
            self._parts.stream.save(folder)
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_FILE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer, but without the frozen weights that it would write with FSDP and ZeRO."""
        if self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        elif self.is_fsdp_enabled:
            save_fsdp_optimizer(self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing to load: the weights are loaded before the model is passed in, since Trainer may shard it."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None) -> Any:
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # Trainer would expect frozen weights in DeepSpeed's files unless there are adapters.
        self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        training_state: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        # The checkpoint restores the logging, evaluation and saving intervals of its own run; this run's apply.
        self.state.compute_steps(self.args, max_steps)
        return training_state


def training_arguments(run: RunSetup, stage: Stage, validate: bool) -> TrainingArguments:
    """The stage's settings as transformers' TrainingArguments. validate: evaluate every train.eval_steps."""
    train = run.config.train
    arguments = TrainingArguments(
        output_dir=str(run.config.checkpoint_folder),
        max_steps=stage.steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=run.batching.step.micro_batches,
        average_tokens_across_devices=True,
        max_grad_norm=train.max_grad_norm,
        bf16=run.precision == "bf16",
        fp16=run.precision == "fp16",
        use_cpu=run.device.type == "cpu",
        seed=train.seed + stage.index,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.save_steps,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        ignore_data_skip=run.stream is not None,  # a stream goes on from a state of its own
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )
    # With several visible GPUs, Trainer would wrap the model in nn.DataParallel, which cuts packed rows apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
