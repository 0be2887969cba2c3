"""Train: accelerate launch train.py [--config C] [--resume auto|PATH] [key=value ...], or plain python train.py."""

import argparse
import os
import shlex

import cli
import config as configuration

parser = cli.Parser("Train the connector, LoRA adapters or the whole language model on preprocessed data, one stage after the other.")
parser.add_argument("--resume", metavar="auto|PATH", help="resume from the latest complete checkpoint of this name, or from a folder")


def main(arguments: argparse.Namespace) -> None:
    rank = int(os.environ.get("RANK", "0"))
    # Imported here: --help and errors in the configuration need no torch.
    from training.run import train

    configuration.check_model_paths(arguments.config, "model.vision", "model.language")
    checkpoint = train(arguments.config, arguments.resume)
    if not rank:
        print(f"checkpoint: {checkpoint}")
        same = shlex.join(["--config", str(arguments.config_path), *arguments.overrides])
        print(f"next: python tools/eval_rerank.py {same} --checkpoints {checkpoint}")


if __name__ == "__main__":
    cli.run(main, parser)
