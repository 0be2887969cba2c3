"""Write the embedded demo's small SigLIP, CLIP, Qwen3 and Qwen3-VL into checkpoints/tiny."""

import argparse
from pathlib import Path

import cli
from training.pretraining.corpus import tokenizer_corpus
from training.tiny_parts import PARTS, build_untrained

FOLDER = Path("checkpoints/tiny")


def arguments() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(__doc__ or "", configured=False)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the parts (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--steps", type=int, required=True, choices=[0], help="0 writes the parts that are missing, untrained")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the weights (default: %(default)s)")
    return parser


def main(parsed: argparse.Namespace) -> int:
    """Write what is missing."""
    missing = [part for part in PARTS if part in parsed.only and not (parsed.out / part / "config.json").exists()]
    if missing:
        build_untrained(parsed.out, tokenizer_corpus(), parsed.seed, missing)
    print(f"{parsed.out}: {', '.join(missing)} written untrained" if missing else f"{parsed.out}: nothing is missing")
    return 0


if __name__ == "__main__":
    cli.run(main, arguments())
