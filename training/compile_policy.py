"""Whether a stage compiles its layers, and whether this machine supports the settings of the training step.

Compilation changes speed and memory, not what is learnt. Every decision is printed with its reason.
"""

from dataclasses import dataclass

import torch

from errors import UsageError
from model.kernels.compile import compile_unsupported_reason
from training.config import TrainConfig
from training.optimization.optimizers import check_optimizer

MIN_MICRO_BATCHES_TO_COMPILE = 500
"""Micro-batches after which compilation has paid for itself: it takes about half a minute and saves a third of each."""


@dataclass(frozen=True)
class CompileDecision:
    """Whether layers are compiled, and the reason in words."""

    enabled: bool
    reason: str

    def __str__(self) -> str:
        return f"{'on' if self.enabled else 'off'} ({self.reason})"


def check_step_settings(train: TrainConfig, device: torch.device, sharded: bool) -> None:
    """Raise UsageError naming the setting that this machine does not support. sharded: weights are sharded (FSDP, ZeRO-3)."""
    check_optimizer(train, device, sharded)
    if train.torch_compile is True:
        unsupported_reason = "layers sharded by FSDP or ZeRO-3 are not compiled" if sharded else compile_unsupported_reason(device)
        if unsupported_reason is not None:
            raise UsageError(f"train.torch_compile: {unsupported_reason}; set train.torch_compile=false")


def decide_compile(train: TrainConfig, device: torch.device, micro_batches: int, sharded: bool) -> CompileDecision:
    """Whether a stage compiles its layers. micro_batches: optimizer steps times gradient accumulation steps of the stage; sharded: weights
    are sharded over ranks (FSDP, ZeRO-3)."""
    if train.torch_compile != "auto":
        return CompileDecision(train.torch_compile, f"train.torch_compile={str(train.torch_compile).lower()}")
    if device.type != "cuda":
        return CompileDecision(False, f"auto on {device.type}")
    unsupported_reason = "weights are sharded over processes" if sharded else compile_unsupported_reason(device)
    if unsupported_reason is not None:
        return CompileDecision(False, f"auto: {unsupported_reason}")
    reason = f"auto: {micro_batches:,} micro-batches in this stage, pays off after about {MIN_MICRO_BATCHES_TO_COMPILE}"
    return CompileDecision(micro_batches >= MIN_MICRO_BATCHES_TO_COMPILE, reason)
