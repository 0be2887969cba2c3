"""Write the demo's synthetic dataset: rendered images with questions, captions and conversations, in the raw formats of real datasets."""

import argparse
from pathlib import Path

import cli
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from errors import UsageError

FOLDER = Path("data/scenes")
_UNSEEN_HELP = "test scenes with combinations of color and shape that never occur in training"


def arguments() -> cli.Parser:
    """The command line."""
    defaults = SceneCounts()
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_argument("--train", type=int, default=defaults.train, metavar="N", help="training scenes (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=defaults.validation, metavar="N", help="validation scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=defaults.test, metavar="N", help="test scenes (default: %(default)s)")
    parser.add_argument("--unseen", type=int, default=defaults.unseen, metavar="N", help=f"{_UNSEEN_HELP} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="S", help="seed of the scenes (default: %(default)s)")
    return parser


def main(parsed: argparse.Namespace) -> int:
    """Write the dataset, or report that it is up to date."""
    counts = SceneCounts(parsed.seed, parsed.train, parsed.validation, parsed.test, parsed.unseen)
    for name in ("train", "validation", "test", "unseen"):
        if getattr(counts, name) < 1:
            raise UsageError(f"--{name} {getattr(counts, name)}: at least one scene is required")
    was_written = write_scenes(parsed.out, counts)
    summary = f"{counts.train:,} training, {counts.validation:,} validation, {counts.test:,} test and {counts.unseen:,} unseen scenes"
    print(f"{parsed.out}: {summary}" if was_written else f"{parsed.out}: unchanged ({summary})")
    return 0


if __name__ == "__main__":
    cli.run(main, arguments())
