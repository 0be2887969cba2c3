"""Stops a stage after an optimizer step when a signal asked for it, with a checkpoint, on all ranks at the same step."""

from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl

from training.interruption.stop_signals import StopSignals


class StopAgreement:
    """The largest value over all ranks of a small number. Every rank must call it, at the same points.

    Over gloo and host memory also where the gradients go over NCCL: no rank waits for its GPU, and a signal that only one rank got
    reaches all.
    """

    def __init__(self, num_processes: int):
        self._group = dist.new_group(backend="gloo") if num_processes > 1 else None

    def __call__(self, value: int) -> int:
        if self._group is None:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
        return int(largest)


class StopCallback(TrainerCallback):
    """Asks Trainer for a checkpoint and the end of the stage once a signal has come to any rank. To be added after all other
    callbacks, so that a signal during their work counts.

    Attributes:
        number: The signal that ended the stage; 0 when none did.
    """

    def __init__(self, signals: StopSignals, agree: StopAgreement):
        self._signals, self._agree = signals, agree
        self.number = 0

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
            self.number = self._agree(self._signals.requested)
            if self.number:
                control.should_training_stop = True
                control.should_save = control.should_save or save
