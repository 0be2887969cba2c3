"""What a device computes natively: bf16, and attention over packed rows. Training, answering and scoring ask here, nobody else.

Cards before NVIDIA's Ampere generation (T4, V100, RTX 20) have tensor cores for fp16 but not for bf16, which torch only emulates
there, and no FlashAttention-2 (arXiv:2307.08691), which torch's variable-length attention needs.
"""

from dataclasses import dataclass

import torch

AMPERE = (8, 0)
"""Compute capability from which NVIDIA GPUs have bf16 and FlashAttention-2."""


@dataclass(frozen=True, slots=True)
class DeviceCapability:
    """What a device has natively.

    bf16: matrix products in bf16, not emulated. On a CPU bf16 works, but is not what a run should choose by itself.
    varlen_attention: torch's variable-length attention, in fp16 and bf16.
    """

    bf16: bool
    varlen_attention: bool


def compute_capability(device: torch.device | str) -> tuple[int, int] | None:
    """NVIDIA's compute capability of a CUDA device, such as (7, 5) for a T4; None for any other device."""
    device = torch.device(device)
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def device_capability(device: torch.device | str) -> DeviceCapability:
    """The capability of a device."""
    capability = compute_capability(device)
    if capability is None:
        return DeviceCapability(bf16=torch.device(device).type == "cpu", varlen_attention=False)
    # AMD's GPUs report the number of their architecture here, from 9 on for those that torch supports; all have bf16.
    return DeviceCapability(bf16=capability >= AMPERE, varlen_attention=capability >= AMPERE)


def half_dtype(device: torch.device | str) -> torch.dtype:
    """The 16-bit dtype of a device: bf16 where it is native, else fp16."""
    return torch.bfloat16 if device_capability(device).bf16 else torch.float16


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Dtype of frozen weights: bf16 on CUDA, fp16 on CUDA devices without native bf16 (T4, V100), fp32 elsewhere."""
    return half_dtype(device) if torch.device(device).type == "cuda" else torch.float32
