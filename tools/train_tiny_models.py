"""Train the demo's tiny SigLIP, CLIP, Qwen3 and Qwen3-VL on synthetic scenes and write them into checkpoints/tiny.

Takes minutes on a GPU, a few hours on two CPU cores. An interrupted run resumes when the command is run again.
"""

import argparse
from pathlib import Path

import torch
from transformers.utils import logging

import cli
from cpu_cores import available_cores
from errors import UsageError
from training.tiny_models.architectures import TINY_MODELS
from training.tiny_models.pretrain import PretrainingSettings, pretrain, write_untrained

FOLDER = Path("checkpoints/tiny")


def arguments() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the models (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TINY_MODELS, default=TINY_MODELS, metavar="MODEL", help=f"train only these of {', '.join(TINY_MODELS)}"
    )
    parser.add_number("--steps", None, "steps per model, instead of its own number; 0 writes missing models untrained", minimum=0)
    parser.add_number("--batch-size", None, "scenes per step, instead of each model's own number", minimum=2)
    parser.add_argument("--learning-rate", type=float, metavar="R", help="peak learning rate, instead of each model's own")
    parser.add_argument("--further", action="store_true", help="continue from the models' weights in the folder, on new scenes")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of weights and scenes (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the training (default: %(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers: faster after about a minute; needs a C++ compiler on a CPU"
    )
    parser.add_number("--workers", None, "data loading processes (default: number of available cores minus one, at least one)", minimum=0)
    return parser


def main(parsed: argparse.Namespace) -> int:
    """Train the models, or write missing ones untrained."""
    if parsed.learning_rate is not None and not parsed.learning_rate > 0:
        raise UsageError(f"--learning-rate {parsed.learning_rate}: must be positive")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if parsed.steps == 0:
        missing = write_untrained(parsed.out, parsed.only, parsed.seed)
        print(f"{parsed.out}: {', '.join(missing)} written untrained" if missing else f"{parsed.out}: nothing is missing")
        return 0
    device = ("cuda" if torch.cuda.is_available() else "cpu") if parsed.device == "auto" else parsed.device
    workers = max(1, available_cores() - 1) if parsed.workers is None else parsed.workers
    settings = PretrainingSettings(
        parsed.seed, torch.device(device), workers, parsed.compile, parsed.further, parsed.steps, parsed.batch_size, parsed.learning_rate
    )
    for card in pretrain(parsed.out, parsed.only, settings):
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in card.metrics)
        print(f"{parsed.out / card.model_name}: {card.recipe.steps:,} steps on {card.device}; {metrics}")
    return 0


if __name__ == "__main__":
    cli.run(main, arguments())
