"""train.precision: the dtype of matrix products on this device."""

import torch

from errors import UsageError
from model.kernels.autocast import Precision
from model.kernels.device_capability import device_capability
from training.config import TrainConfig
from training.distributed.launch import sharding_library


def resolve_precision(train: TrainConfig, device: torch.device) -> Precision:
    """The precision of a run. auto: bf16 where CUDA has it natively, fp16 on other CUDA devices, fp32 elsewhere.

    Raises UsageError when the device or the launch file does not support the precision.
    """
    precision = _automatic(device) if train.precision == "auto" else train.precision
    if precision == "bf16" and not device_capability(device).bf16:
        raise UsageError(f"train.precision: {device} does not compute in bf16; set train.precision={_automatic(device)}")
    if precision == "fp16":
        if device.type not in ("cuda", "cpu"):
            raise UsageError(f"train.precision: fp16 needs a CUDA device or a CPU, found {device.type}; set train.precision=fp32")
        library = sharding_library()
        if library is not None:
            raise UsageError(
                f"train.precision: fp16 does not work with {library} here; launch with configs/accelerate/gpu.yaml or multi_gpu.yaml, "
                "or set train.precision=fp32"
            )
    return precision


def _automatic(device: torch.device) -> Precision:
    if device.type != "cuda":
        return "fp32"
    return "bf16" if device_capability(device).bf16 else "fp16"
