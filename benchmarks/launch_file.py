"""What `accelerate launch` makes of a launch file, and FSDP2 and ZeRO-3 with the file's values on CPU processes.

accelerate itself ignores its FSDP settings on a CPU; `shard` calls the function that it calls on a GPU.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from training.distributed.sharding import configure_fsdp


def launch_arguments(launch_file: Path) -> Any:
    """The launcher's arguments after it has read the file."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(launch_file), "train.py"]))
    return arguments


def launch_environment(launch_file: Path) -> dict[str, str]:
    """Variables that the launcher sets for the processes of a launch file."""
    with _environment({}):
        arguments = launch_arguments(launch_file)
        # `accelerate launch` adds the names of the file's DeepSpeed keys.
        arguments.deepspeed_fields_from_accelerate_config = ""
        environment: dict[str, str] = (
            prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
        )
    return environment


def fsdp_plugin(launch_file: Path) -> FullyShardedDataParallelPlugin:
    """accelerate's FSDP settings in a process that was started with a launch file."""
    with _environment({key: value for key, value in launch_environment(launch_file).items() if key.startswith("FSDP_")}):
        return FullyShardedDataParallelPlugin()


def shard(model: torch.nn.Module, plugin: FullyShardedDataParallelPlugin) -> torch.nn.Module:
    """Shard a model over all CPU ranks, in place, with `fully_shard` as accelerate calls it. Every rank must call this."""
    configure_fsdp(plugin, model)
    world_size = torch.distributed.get_world_size()
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=torch.distributed.get_rank() == 0,
        device=torch.device("cpu"),
        torch_device_mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (world_size,), mesh_dim_names=("fsdp",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("fsdp",)),
    )
    sharded: torch.nn.Module = fsdp2_prepare_model(accelerator, model)
    return sharded


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment with some variables set, as before on exit, whatever is set inside."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
