"""How a training step is carried out on this device: compiled or not, with activations kept or recomputed.

Nothing here touches what is learnt, only time and memory. What was chosen is said in a line each.
"""

from dataclasses import dataclass

import torch

from errors import UsageError
from model.kernels.compile import compile_unsupported_reason
from training.config import TrainConfig
from training.optimization.optimizers import check_optimizer

COMPILE_PAYS_AFTER = 500
"""Micro-batches behind which compiling has paid for itself: it takes about half a minute and saves a third of each."""


@dataclass(frozen=True)
class CompileDecision:
    """Something that is switched on or off, and why, in words for people."""

    enabled: bool
    reason: str

    def __str__(self) -> str:
        return f"{'on' if self.enabled else 'off'} ({self.reason})"


def check_step_settings(train: TrainConfig, device: torch.device, sharded: bool) -> None:
    """Raise UsageError naming the setting that this machine cannot carry out. shared_out: weights are divided (FSDP, ZeRO-3)."""
    check_optimizer(train, device, sharded)
    if train.torch_compile is True:
        unsupported_reason = "layers that FSDP or ZeRO-3 shares out are not compiled" if sharded else compile_unsupported_reason(device)
        if unsupported_reason is not None:
            raise UsageError(f"train.torch_compile: {unsupported_reason}; set train.torch_compile=false")


def decide_compile(train: TrainConfig, device: torch.device, micro_batches: int, sharded: bool) -> CompileDecision:
    """Whether a stage of so many micro-batches compiles its layers."""
    if train.torch_compile != "auto":
        return CompileDecision(train.torch_compile, f"train.torch_compile={str(train.torch_compile).lower()}")
    if device.type != "cuda":
        return CompileDecision(False, f"auto on {device.type}")
    if sharded:
        return CompileDecision(False, "auto: weights are shared out over processes")
    unsupported_reason = compile_unsupported_reason(device)
    if unsupported_reason is not None:
        return CompileDecision(False, f"auto: {unsupported_reason}")
    pays_off = micro_batches >= COMPILE_PAYS_AFTER
    return CompileDecision(pays_off, f"auto: {micro_batches:,} micro-batches in this stage, repaid after about {COMPILE_PAYS_AFTER}")
