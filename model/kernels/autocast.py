"""The dtype in which matrix products run."""

from typing import Literal

import torch

from model.kernels.device_capability import default_dtype

Precision = Literal["bf16", "fp16", "fp32"]
"""Dtype of matrix products; bf16 and fp16 mean autocast, with trained weights in fp32."""

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: Precision) -> torch.dtype:
    """Dtype of matrix products under a precision."""
    return _AUTOCAST_DTYPES.get(precision, torch.float32)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products run in a precision; it changes nothing for fp32."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def frozen_dtype(device: torch.device | str, precision: Precision) -> torch.dtype:
    """Dtype of frozen weights in a run of this precision: that of its matrix products on CUDA, fp32 elsewhere.

    Equal dtypes spare a copy of each weight in every step.
    """
    return torch.float32 if default_dtype(device) == torch.float32 else autocast_dtype(precision)


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """Autocast's dtype if autocast is enabled on the device of x, else the dtype of x."""
    # torch.amp.is_autocast_available would break the graph of compiled layers. Of the devices in use only meta has no autocast.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
