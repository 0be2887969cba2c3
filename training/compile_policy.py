"""How a training step is carried out on this device: compiled or not, with activations kept or recomputed.

Nothing here touches what is learnt, only time and memory. What was chosen is said in a line each.
"""

from dataclasses import dataclass

import torch

from errors import UsageError
from model.kernels.compile import what_compiling_lacks
from training.config import TrainConfig
from training.optimization.optimizers import check_optimizer

REPAID_AFTER = 500
"""Micro-batches behind which compiling has paid for itself: it takes about half a minute and saves a third of each."""


@dataclass(frozen=True)
class Choice:
    """Something that is switched on or off, and why, in words for people."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'} ({self.why})"


def check_step(train: TrainConfig, device: torch.device, shared_out: bool) -> None:
    """Raise UsageError naming the setting that this machine cannot carry out. shared_out: weights are divided (FSDP, ZeRO-3)."""
    check_optimizer(train, device, shared_out)
    if train.compile is True:
        lacking = "layers that FSDP or ZeRO-3 shares out are not compiled" if shared_out else what_compiling_lacks(device)
        if lacking is not None:
            raise UsageError(f"train.compile: {lacking}; set train.compile=false")


def choose_compiling(train: TrainConfig, device: torch.device, micro_batches: int, shared_out: bool) -> Choice:
    """Whether a stage of so many micro-batches compiles its layers."""
    if train.compile != "auto":
        return Choice(train.compile, f"train.compile={str(train.compile).lower()}")
    if device.type != "cuda":
        return Choice(False, f"auto on {device.type}")
    if shared_out:
        return Choice(False, "auto: weights are shared out over processes")
    lacking = what_compiling_lacks(device)
    if lacking is not None:
        return Choice(False, f"auto: {lacking}")
    enough = micro_batches >= REPAID_AFTER
    return Choice(enough, f"auto: {micro_batches:,} micro-batches in this stage, repaid after about {REPAID_AFTER}")
