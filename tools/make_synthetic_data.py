"""Write the demo's synthetic dataset: rendered images with questions, captions and conversations, in the raw formats of real datasets."""

import argparse
from pathlib import Path

import cli
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes

FOLDER = Path("data/scenes")


def arguments() -> cli.Parser:
    """The command line."""
    defaults = SceneCounts()
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_number("--train", defaults.train, "training scenes")
    parser.add_number("--validation", defaults.validation, "validation scenes")
    parser.add_number("--test", defaults.test, "test scenes")
    parser.add_number("--unseen", defaults.unseen, "test scenes with combinations of color and shape that never occur in training")
    parser.add_argument("--regions", action="store_true", help="also write expressions for regions, in the layout of RefCOCO")
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="S", help="seed of the scenes (default: %(default)s)")
    return parser


def main(parsed: argparse.Namespace) -> int:
    """Write the dataset, or report that it is up to date."""
    counts = SceneCounts(parsed.seed, parsed.train, parsed.validation, parsed.test, parsed.unseen, parsed.regions)
    was_written = write_scenes(parsed.out, counts)
    summary = f"{counts.train:,} training, {counts.validation:,} validation, {counts.test:,} test and {counts.unseen:,} unseen scenes"
    print(f"{parsed.out}: {summary}" if was_written else f"{parsed.out}: unchanged ({summary})")
    return 0


if __name__ == "__main__":
    cli.run(main, arguments())
