"""Loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2), in transformers' Trainer.

The loss is multiplied by a scale so that small gradients are not rounded to zero. A step with an infinite gradient is skipped and
the scale halved; after 2,000 good steps in a row it is doubled. accelerate and torch do this; here stands what they leave open: a
CPU, what is logged of skipped steps, and when a run cannot go on.
"""

from typing import Any

import torch
from transformers import Trainer

from errors import TesseraError

MAX_SKIPPED_STEPS = 40
"""Optimizer steps that may be skipped in a row. The scale starts at 2^16 and halves at each: after 40 it is 2^-24, the smallest
number of fp16, and no smaller scale can help."""


class LossScalingTrainer(Trainer):
    """Trainer that, with `fp16` in its arguments, goes on after skipped steps.

    A skipped step counts as a step of the stage, but the learning-rate schedule does not advance, and neither its loss nor its
    gradient norm is logged: a log step that is skipped is made up for by the next one that is not.
    """

    def __init__(self, model: Any, arguments: Any, **options: Any):
        super().__init__(model, arguments, **options)
        if arguments.fp16 and self.accelerator.scaler is None:
            # On a CPU accelerate leaves out autocast and scaler.
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler(arguments.device.type)
        self._loss_before_step = torch.zeros((), device=arguments.device)
        self._counted_step = self._skipped_since_log = self._skipped_in_a_row = 0
        self._log_is_due = False

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """As Trainer. tr_loss: sum of the losses since the last log step."""
        # Trainer calls this once more at the end of an epoch, without a new step.
        if self.args.fp16 and self.state.global_step > self._counted_step:
            self._counted_step = self.state.global_step
            if self.accelerator.optimizer_step_was_skipped:
                self._leave_out_step(tr_loss)
            else:
                self._skipped_in_a_row = 0
                self.control.should_log = self.control.should_log or self._log_is_due
                self._log_is_due = False
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        self._loss_before_step.copy_(tr_loss)

    def _leave_out_step(self, tr_loss: torch.Tensor) -> None:
        """Take the loss of the last step, which may be infinite, out of the mean. Raises TesseraError when too many are skipped."""
        self._skipped_since_log += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise TesseraError(f"step {self.state.global_step}: infinite gradients in {self._skipped_in_a_row} {_TOO_LARGE}")
        tr_loss.copy_(self._loss_before_step)
        self._globalstep_last_logged += 1
        self._log_is_due = self._log_is_due or self.control.should_log
        self.control.should_log = False

    def scaling_metrics(self) -> dict[str, float]:
        """Loss scale, and the steps that were skipped since the last call; empty without fp16."""
        if not self.args.fp16:
            return {}
        skipped, self._skipped_since_log = self._skipped_since_log, 0
        return {"loss_scale": float(self.accelerator.scaler.get_scale()), "skipped_steps": skipped}

    def check_trained(self) -> None:
        """Raise TesseraError when every step so far was skipped, so that the weights are still those of the beginning."""
        # The schedule advances with every step that is not skipped, and is restored when a run goes on.
        if self.args.fp16 and self.state.global_step and not self.lr_scheduler.state_dict()["last_epoch"]:
            raise TesseraError(f"infinite gradients in all {self.state.global_step} {_TOO_LARGE}")


_TOO_LARGE = (
    "optimizer steps in a row: this model's values or their gradients do not fit into fp16; "
    "use a GPU with bf16, or set train.precision=fp32"
)
