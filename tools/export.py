"""Merge a checkpoint and write it for others: our own form, or LLaVA's, which stock transformers reads."""

import argparse
import os
from pathlib import Path

import torch

import cli
from dataset.build.merge_report import MergeReport
from errors import TesseraError
from model.hub import push_to_hub
from model.hub.llava_export import export
from model.siglip_qwen.checkpoint import latest
from model.siglip_qwen.processor import Processor

parser = cli.Parser(__doc__)
parser.add_argument("--checkpoint", default="latest", metavar="DIR", help="checkpoint folder; newest: of checkpoints/<name> (default)")
parser.add_argument("--format", required=True, choices=("merged", "llava"), help="merged: our own form; llava: for stock transformers")
parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder")
parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default: exact; bfloat16: half)")
parser.add_argument("--report", type=Path, metavar="JSON", help="data report for the model card, such as data/<name>/report.json")
parser.add_argument(
    "--push",
    metavar="OWNER/NAME",
    help="then upload the folder to this repository of the Hugging Face hub, made private where it is new, with the token in HF_TOKEN",
)


def main(arguments: argparse.Namespace) -> None:
    """Export, name what was written, and upload it where that is asked for."""
    token = push_to_hub.token_from_environment(os.environ) if arguments.push else ""
    if arguments.push:
        push_to_hub.check_repository(arguments.push, token)
    use_latest = arguments.checkpoint == "latest"
    folder = latest(arguments.config.checkpoint_folder) if use_latest else Path(arguments.checkpoint)
    report = MergeReport.load(arguments.report).table() if arguments.report else None
    dtype = getattr(torch, arguments.dtype)
    warnings = export(folder, arguments.out, arguments.format, Processor.load(folder), dtype=dtype, data_report=report)
    for warning in warnings:
        print(f"note: {warning}")
    print(f"{folder} written to {arguments.out} ({arguments.format}, {arguments.dtype})", flush=True)
    if arguments.push:
        upload(arguments.out, arguments.push, token)


def upload(folder: Path, repository: str, token: str) -> None:
    """Upload an export, and say where it is. What was written stays where that fails."""
    try:
        print(f"uploaded: {push_to_hub.push(folder, repository, token)}")
    except TesseraError as error:
        raise TesseraError(f"{error}; the export stands in {folder}: `hf upload {repository} {folder}` tries again") from error


if __name__ == "__main__":
    cli.run(main, parser)
