"""Train several configurations on the same data, with several seeds, and compare them in one report.

A comparison that was stopped goes on where it was when the command is run again.
"""

import argparse
from pathlib import Path

import cli
from benchmarks.family_comparison import Comparison, compare_families
from errors import UsageError

parser = cli.Parser(__doc__ or "", takes_config=False)
parser.add_argument("configs", type=Path, nargs="+", metavar="YAML", help="configurations, such as one of each model family")
parser.add_argument("--name", default="families", help="of the comparison; results/<name> (default: %(default)s)")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="seeds of the runs (default: 0 1)")
parser.add_argument("--steps", type=int, default=200, metavar="N", help="optimizer steps of the last stage (default: %(default)s)")
parser.add_argument("--questions", type=int, default=400, metavar="N", help="questions of the evaluation (default: %(default)s)")


def main(arguments: argparse.Namespace) -> None:
    """Run the comparison and print its table."""
    if min(arguments.steps, arguments.questions) < 1 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UsageError("--steps, --questions: expected at least 1; --seeds: expected different ones")
    comparison = Comparison(arguments.name, tuple(arguments.configs), tuple(arguments.seeds), arguments.steps, arguments.questions)
    print(f"\n{compare_families(comparison)}", end="")


if __name__ == "__main__":
    cli.run(main, parser)
