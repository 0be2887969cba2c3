"""Train: accelerate launch train.py [--config C] [--resume auto|PATH] [key=value ...], or plain python train.py."""

import argparse
import os
import shlex

import cli
import config as configuration

parser = cli.Parser("Train the projector, the adapters or the whole language model on merged data, stage by stage.")
parser.add_argument("--resume", metavar="auto|PATH", help="continue the newest whole checkpoint of this name, or the one in a folder")


def main(arguments: argparse.Namespace) -> None:
    rank = int(os.environ.get("RANK", "0"))
    # The configuration section needs no heavy library; the training does.
    from training.run import train

    configuration.check_model_paths(arguments.config, "model.vision", "model.language")
    checkpoint = train(arguments.config, arguments.resume)
    if not rank:
        print(f"checkpoint: {checkpoint}")
        same = shlex.join(["--config", str(arguments.config_path), *arguments.overrides])
        print(f"next: python tools/eval_rerank.py {same} --checkpoints {checkpoint}")


if __name__ == "__main__":
    cli.run(main, parser)
