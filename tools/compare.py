"""Compare stored answers of two systems to the same questions: difference, interval, p-value, verdict. No model is loaded.

Input: predictions files of this project, or JSON lines, JSON, CSV or TSV of another tool, whose field names --fields gives. A and B may be
one file, with two choices or two answer fields.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cli
import config as configuration
from errors import UsageError

if TYPE_CHECKING:
    from evaluation.comparison.external_predictions import Side

parser = cli.Parser(__doc__ or "")
parser.add_argument("a", type=Path, metavar="A.jsonl", help="answers of one system")
parser.add_argument("b", type=Path, metavar="B.jsonl", help="answers of another system, or another choice of the same system")
parser.add_argument("--more-a", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of system a")
parser.add_argument("--more-b", type=Path, nargs="+", default=[], metavar="FILE", help="further seeds of system b")
parser.add_argument("--data", type=Path, metavar="DIR", help="merged data with the references (default: data/<name>)")
parser.add_argument(
    "--choice", nargs="+", default=[], metavar="NAME", help="first, reranked, clip or majority: one for both sides, or one per side"
)
FIELDS_HELP = {
    "--fields": "field names in files of other tools: id and answer, optionally references, image and question, as in "
    "id=question_id answer=text",
    "--fields-a": "the same for the files of side a alone, also where one is a predictions file",
    "--fields-b": "the same for the files of side b alone, also where one is a predictions file",
}
for option, text in FIELDS_HELP.items():
    parser.add_argument(option, nargs="+", default=[], metavar="KEY=FIELD", help=text)


def main(arguments: argparse.Namespace) -> None:
    """Print the comparison."""
    config: configuration.Config = arguments.config
    # Imported here: --help and wrong arguments need no torch.
    from dataset.loading.sample_store import SampleStore
    from evaluation.comparison.compare import compare_files

    a, b = sides(arguments)
    result = compare_files(a, b, lambda: SampleStore(arguments.data or config.data_folder), config.eval.resamples, config.eval.seed)
    print(result.table())


def sides(arguments: argparse.Namespace) -> tuple["Side", "Side"]:
    """Files, choice and field names of both sides. Raises UsageError for more choices than sides and for an option without effect."""
    choices = arguments.choice
    if len(choices) > 2:
        raise UsageError(f"--choice {' '.join(choices)}: expected one for both sides, or one per side")
    of_side = [*choices, *choices][:2] if choices else [None, None]
    if arguments.fields and arguments.fields_a and arguments.fields_b:
        raise UsageError("--fields: has no effect next to --fields-a and --fields-b")
    from evaluation.comparison.external_predictions import FieldNames, Side

    shared = FieldNames.parse(arguments.fields)
    a, b = FieldNames.parse(arguments.fields_a, "--fields-a"), FieldNames.parse(arguments.fields_b, "--fields-b")
    return (
        Side([arguments.a, *arguments.more_a], of_side[0], a or shared, a is not None),
        Side([arguments.b, *arguments.more_b], of_side[1], b or shared, b is not None),
    )


if __name__ == "__main__":
    cli.run(main, parser)
