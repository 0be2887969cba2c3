"""Train: accelerate launch train.py [--config C] [--resume auto|PATH] [key=value ...], or plain python train.py."""

import argparse
import contextlib
import os
import shlex
import sys

import psutil

import cli
import config as configuration
from errors import Interrupted
from file_lock import folder_lock
from training.interruption.resume_command import launch_command, resume_command
from training.interruption.stop_signals import StopSignals
from training.preflight import check_before_loading

parser = cli.Parser("Train the connector, LoRA adapters or the whole language model on preprocessed data, one stage after the other.")
parser.add_argument("--resume", metavar="auto|PATH", help="resume from the latest complete checkpoint of this name, or from a folder")


def main(arguments: argparse.Namespace) -> None:
    rank = int(os.environ.get("RANK", "0"))
    launch = launch_command(sys.argv[0], psutil.Process(os.getppid()))
    same = ["--config", str(arguments.config_path), *arguments.overrides]
    configuration.check_model_paths(arguments.config, *(f"model.{key}" for key in arguments.config.model.base_models))
    if arguments.config.data.streaming:
        configuration.check_source_paths(arguments.config)
    check_before_loading(arguments.config, arguments.resume)
    lock = contextlib.nullcontext() if rank else folder_lock(arguments.config.checkpoint_folder, ".training.lock", "training")
    try:
        with StopSignals() as signals, lock:
            # Imported here: --help, errors in the arguments and the checks so far need no torch.
            from training.run import TrainingRun

            checkpoint = TrainingRun(arguments.config, arguments.resume, signals).train()
    except Interrupted as stop:
        raise Interrupted(stop.number, f"{stop}; go on with: {resume_command(same, launch)}") from stop
    if not rank:
        print(f"checkpoint: {checkpoint}")
        print(f"next: python tools/eval_rerank.py {shlex.join(same)} --checkpoints {checkpoint}")


if __name__ == "__main__":
    cli.run(main, parser)
