"""Draw the embedded demo's pictures and write what is said about them in the raw formats of real data sets."""

import argparse
from pathlib import Path

import cli
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from errors import UsageError

FOLDER = Path("data/scenes")
UNSEEN = "test scenes with combinations of color and shape that training never shows"


def arguments() -> cli.Parser:
    """The command line."""
    plan = SceneCounts()
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the set (default: %(default)s)")
    parser.add_argument("--train", type=int, default=plan.train, metavar="N", help="training scenes (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=plan.validation, metavar="N", help="validation scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=plan.test, metavar="N", help="test scenes (default: %(default)s)")
    parser.add_argument("--unseen", type=int, default=plan.unseen, metavar="N", help=f"{UNSEEN} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=plan.seed, metavar="S", help="another seed draws other scenes (default: %(default)s)")
    return parser


def main(parsed: argparse.Namespace) -> int:
    """Write the set, or say that it stands already."""
    plan = SceneCounts(parsed.seed, parsed.train, parsed.validation, parsed.test, parsed.unseen)
    for name in ("train", "validation", "test", "unseen"):
        if getattr(plan, name) < 1:
            raise UsageError(f"--{name} {getattr(plan, name)}: at least one scene is needed")
    was_written = write_scenes(parsed.out, plan)
    counts = f"{plan.train:,} training, {plan.validation:,} validation, {plan.test:,} test and {plan.unseen:,} unseen scenes"
    print(f"{parsed.out}: {counts}" if was_written else f"{parsed.out}: unchanged ({counts})")
    return 0


if __name__ == "__main__":
    cli.run(main, arguments())
