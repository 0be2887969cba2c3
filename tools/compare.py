"""Compare two predictions files on the same questions: both accuracies, difference, interval, p-value, verdict."""

import argparse
from pathlib import Path

import cli
import config as configuration
from dataset.store import Store
from evaluation.compare import compare_files

parser = cli.Parser(__doc__ or "")
parser.add_argument("a", type=Path, metavar="A.jsonl", help="predictions of one system")
parser.add_argument("b", type=Path, metavar="B.jsonl", help="predictions of another, or another choice of the same")
parser.add_argument("--data", type=Path, metavar="DIR", help="merged data with the references (default: data/<name>)")
parser.add_argument("--choice", nargs="+", default=[], metavar="NAME", help="first, reranked, clip or majority; one for both, or one each")


def main(arguments: argparse.Namespace) -> None:
    """Print the comparison."""
    config: configuration.Config = arguments.config
    store = Store(arguments.data or config.data_folder)
    print(compare_files(arguments.a, arguments.b, store, arguments.choice, config.eval.bootstrap, config.eval.seed).table())


if __name__ == "__main__":
    cli.run(main, parser)
