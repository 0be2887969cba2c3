"""What `accelerate launch` makes of our launch files: its arguments, and the environment of each process."""

import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


def launch_arguments(launch_file: Path) -> Any:
    """The launcher's arguments after it has read the file."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(launch_file), "train.py"]))
    return arguments


def launch_environment(launch_file: Path) -> dict[str, str]:
    """Variables that the launcher sets for the processes of a launch file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        arguments = launch_arguments(launch_file)
        # `accelerate launch` adds the names of the file's DeepSpeed keys.
        arguments.deepspeed_fields_from_accelerate_config = ""
        environment: dict[str, str] = (
            prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
        )
    return environment


def fsdp_plugin(launch_file: Path) -> FullyShardedDataParallelPlugin:
    """accelerate's FSDP settings in a process that was started with a launch file."""
    environment = launch_environment(launch_file)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            if key.startswith(("FSDP", "ACCELERATE_USE_FSDP")):
                patch.setenv(key, value)
        return FullyShardedDataParallelPlugin()
