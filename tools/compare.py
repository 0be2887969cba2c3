"""Compare stored answers of two systems to the same questions, without any model: difference, interval, p-value, verdict.

Files are predictions of this project, or of any other tool whose fields --fields names, as JSON lines, JSON, CSV or TSV.
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
parser.add_argument("b", type=Path, metavar="B.jsonl", help="answers of another, or another choice of the same")
parser.add_argument("--more-a", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of the system a")
parser.add_argument("--more-b", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of the system b")
parser.add_argument("--data", type=Path, metavar="DIR", help="merged data with the references (default: data/<name>)")
parser.add_argument("--choice", nargs="+", default=[], metavar="NAME", help="first, reranked, clip or majority; one for both, or one each")
parser.add_argument(
    "--fields",
    nargs="+",
    default=[],
    metavar="KEY=FIELD",
    help="what files of other tools call id and answer, and references and image where they hold them: id=question_id answer=text",
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
