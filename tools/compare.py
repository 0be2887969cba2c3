"""Compare stored answers of two systems to the same questions: difference, interval, p-value, verdict. No model is loaded.

Input: predictions files of this project, or JSON lines, JSON, CSV or TSV of another tool, whose field names --fields gives.
"""

import argparse
from pathlib import Path

import cli
import config as configuration
from dataset.loading.sample_store import SampleStore
from evaluation.comparison.compare import compare_files
from evaluation.comparison.external_predictions import FieldNames

parser = cli.Parser(__doc__ or "")
parser.add_argument("a", type=Path, metavar="A.jsonl", help="answers of one system")
parser.add_argument("b", type=Path, metavar="B.jsonl", help="answers of another system, or another choice of the same system")
parser.add_argument("--more-a", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of system a")
parser.add_argument("--more-b", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of system b")
parser.add_argument("--data", type=Path, metavar="DIR", help="merged data with the references (default: data/<name>)")
parser.add_argument(
    "--choice", nargs="+", default=[], metavar="NAME", help="first, reranked, clip or majority: one for both sides, or one per side"
)
parser.add_argument(
    "--fields",
    nargs="+",
    default=[],
    metavar="KEY=FIELD",
    help="field names in files of other tools: id and answer, optionally references and image, as in id=question_id answer=text",
)


def main(arguments: argparse.Namespace) -> None:
    """Print the comparison."""
    config: configuration.Config = arguments.config
    result = compare_files(
        [arguments.a, *arguments.more_a],
        [arguments.b, *arguments.more_b],
        lambda: SampleStore(arguments.data or config.data_folder),
        arguments.choice,
        FieldNames.parse(arguments.fields),
        config.eval.bootstrap,
        config.eval.seed,
    )
    print(result.table())


if __name__ == "__main__":
    cli.run(main, parser)
