"""Merge a checkpoint and write it for others: our own form, or LLaVA's, which stock transformers reads."""

import argparse
from pathlib import Path

import torch

import cli
from dataset.processor import Processor
from dataset.report import Report
from model.checkpoint import newest
from model.export import export

parser = cli.Parser(__doc__)
parser.add_argument("--checkpoint", default="newest", metavar="DIR", help="checkpoint folder; newest: of checkpoints/<name> (default)")
parser.add_argument("--format", required=True, choices=("merged", "llava"), help="merged: our own form; llava: for stock transformers")
parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder")
parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default: exact; bfloat16: half)")
parser.add_argument("--report", type=Path, metavar="JSON", help="data report for the model card, such as data/<name>/report.json")


def main(arguments: argparse.Namespace) -> None:
    """Export, and name what was written."""
    newest_wanted = arguments.checkpoint == "newest"
    folder = newest(arguments.config.checkpoint_folder) if newest_wanted else Path(arguments.checkpoint)
    report = Report.load(arguments.report).table() if arguments.report else None
    dtype = getattr(torch, arguments.dtype)
    warnings = export(folder, arguments.out, arguments.format, Processor.load(folder), dtype=dtype, data_report=report)
    for warning in warnings:
        print(f"note: {warning}")
    print(f"{folder} written to {arguments.out} ({arguments.format}, {arguments.dtype})")


if __name__ == "__main__":
    cli.run(main, parser)
