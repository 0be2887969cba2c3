"""What a stage adds to Trainer's loop: recorded learning rates, its first and last log step, early stopping."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from training.monitoring.metrics_history import History, best_evaluation, should_stop_early
from training.stages import Stage


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
