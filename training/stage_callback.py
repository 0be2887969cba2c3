"""What a stage adds to Trainer's loop: recorded learning rates, its first and last log step, early stopping, and a stop after a signal
with a checkpoint, on all ranks at the same step."""

from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from training.interruption.stop_signals import StopSignals
from training.monitoring.metrics_history import History, best_evaluation, should_stop_early
from training.run_setup import Stage


class StageCallback(TrainerCallback):
    def __init__(self, stage: Stage, history: History, early_stopping_patience: int | None):
        self._stage, self._history, self._patience = stage, history, early_stopping_patience
        self.learning_rates: dict[str, float] = {}
        self.stopped_early = False

    def on_pre_optimizer_step(self, *_args: Any, optimizer: torch.optim.Optimizer, **_kwargs: Any) -> None:
        """Record the learning rates of this step, before the schedule advances."""
        self.learning_rates = {f"learning_rate/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """Log the first and the last step of a stage in any case."""
        if state.global_step in (1, state.max_steps):
            control.should_log = True

    def on_evaluate(self, _args: Any, _state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """Early stopping: save a checkpoint at each new best validation loss, and stop the stage when patience runs out."""
        if self._patience is None:
            return
        evaluations = self._history.validation(self._stage.config.name)
        if should_stop_early(evaluations, self._patience):
            control.should_training_stop = self.stopped_early = True
        if control.should_training_stop or best_evaluation(evaluations) == evaluations[-1]:
            control.should_save = True


class StopCallback(TrainerCallback):
    """Asks Trainer for a checkpoint and the end of the stage once a signal has come to any rank; one for all stages of a run.

    To be added after all other callbacks, so that a signal during their work counts.
    """

    def __init__(self, signals: StopSignals, num_processes: int):
        self._signals = signals
        # Over gloo and host memory also where the gradients go over NCCL: no rank waits for its GPU.
        self._group = dist.new_group(backend="gloo") if num_processes > 1 else None
        self.number = 0
        """The signal that ended the run; 0 when none did."""

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        # Before the first step is done, nothing is lost by ending at once.
        self._signals.finish_steps(True)

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_kwargs: Any) -> None:
        self._check(control, save=True)

    def on_evaluate(self, _args: Any, _state: Any, control: TrainerControl, **_kwargs: Any) -> None:
        self._check(control, save=True)

    def on_save(self, _args: Any, _state: Any, control: TrainerControl, **_kwargs: Any) -> None:
        self._check(control, save=False)  # this step's checkpoint has just been written

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._signals.finish_steps(False)

    def _check(self, control: TrainerControl, save: bool) -> None:
        if not self.number:
            self.number = self._signals.requested
            if self._group is not None:
                # The largest number of all ranks: a signal that only one rank got reaches all.
                requested = torch.tensor(self.number)
                dist.all_reduce(requested, dist.ReduceOp.MAX, self._group)
                self.number = int(requested)
            if self.number:
                control.should_training_stop = True
                control.should_save = control.should_save or save
