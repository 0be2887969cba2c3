"""What the launcher started: world size, and whether weights are sharded over the ranks."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from errors import UsageError
from model.family_config import FamilyConfig
from model.quantization import Quantization
from process_group import LAUNCH_HELP, init_distributed


def check_world_size(wanted: int | None) -> PartialState:
    """Join the process group. Raises UsageError when the world size is not the one of the configuration (`wanted`) or the launcher."""
    state = init_distributed()
    if wanted is not None and state.num_processes != wanted:
        raise UsageError(f"train.num_processes: expected {wanted} processes, found {state.num_processes}; {LAUNCH_HELP}")
    return state


def uses_fsdp() -> bool:
    """True when the launcher is set to FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def uses_deepspeed() -> bool:
    """True when the launcher is set to DeepSpeed."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def uses_zero3() -> bool:
    """True when the launcher is set to DeepSpeed ZeRO-3."""
    return uses_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def weights_are_sharded() -> bool:
    """True when the launcher is set to FSDP or ZeRO-3, where no rank holds all weights of a layer."""
    return uses_fsdp() or uses_zero3()


def loads_on_rank_0_alone(quantization: Quantization) -> bool:
    """Whether rank 0 alone loads the weights: ZeRO-3, and FSDP2 with fsdp_cpu_ram_efficient_loading; neither sends quantised ones."""
    return quantization == "none" and (uses_zero3() or (uses_fsdp() and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING")))


def check_shardable(model: FamilyConfig) -> None:
    """Raise UsageError when the launcher is set to shard weights of a family, or of a quantisation, that cannot be sharded."""
    quantization = model.quantization
    if (library := sharding_library()) is not None and "sharded" not in model.abilities:
        raise UsageError(f"model.family: models of this family are not trained with {library}; launch with multi_gpu.yaml")
    if quantization == "int8" and weights_are_sharded():
        raise UsageError("model.quantization: int8 weights cannot be sharded by FSDP or ZeRO-3; set nf4 or none, or use multi_gpu.yaml")
    if quantization == "nf4" and uses_zero3():
        raise UsageError("model.quantization: nf4 weights cannot be sharded by ZeRO-3; launch with fsdp2_qlora.yaml or multi_gpu.yaml")
    if quantization == "nf4" and uses_fsdp() and os.environ.get("FSDP_VERSION") != "2":
        raise UsageError("model.quantization: nf4 weights are sharded by FSDP2 only; launch with fsdp2_qlora.yaml")


def unused_gpus(state: PartialState) -> str | None:
    """A line that says that one process trains on one of several visible GPUs, and how to use all of them; None otherwise."""
    visible = torch.cuda.device_count()
    if state.num_processes > 1 or state.device.type != "cuda" or visible < 2:
        return None
    return (
        f"one process trains on one GPU: {state.device} of {visible} visible ones; to use all, "
        f"accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_processes {visible} train.py"
    )


def sharding_library() -> str | None:
    """FSDP or DeepSpeed when the launcher is set to one of them (ZeRO-2 included), else None."""
    return "FSDP" if uses_fsdp() else "DeepSpeed" if uses_deepspeed() else None
