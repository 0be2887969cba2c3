"""Export a checkpoint with merged adapters, in our format or as a LLaVA model for stock transformers."""

import argparse
import os
from pathlib import Path

import cli
from errors import TesseraError, UsageError
from model.checkpoint_manifest import latest_checkpoint
from model.hub import push_to_hub

parser = cli.Parser(__doc__)
parser.add_argument(
    "--checkpoint", default="latest", metavar="DIR", help="checkpoint folder; latest (default): the latest one in checkpoints/<name>"
)
what = "merged: as Tessera loads it; llava: our own model, for stock transformers"
parser.add_argument("--format", required=True, choices=("merged", "llava"), help=what)
parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty output folder")
parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default: float32, exact; bfloat16: half the size)"
)
parser.add_argument("--report", type=Path, metavar="JSON", help="data report for the model card, such as data/<name>/report.json")
what = "upload the folder to this repository of the Hugging Face hub with the token in HF_TOKEN; a new repository is private"
parser.add_argument("--push", metavar="OWNER/NAME", help=what)


def main(arguments: argparse.Namespace) -> None:
    """Export the checkpoint, and upload it with --push."""
    token = push_to_hub.token_from_environment(os.environ) if arguments.push else ""
    if arguments.push:
        push_to_hub.check_repository(arguments.push, token)
    if arguments.checkpoint == "newest":
        raise UsageError("--checkpoint newest: `newest` is called `latest` now")
    latest = arguments.checkpoint == "latest"
    folder = latest_checkpoint(arguments.config.checkpoint_folder) if latest else Path(arguments.checkpoint)
    # Imported here: --help and wrong arguments need no torch.
    import torch

    from dataset.build.merge_report import MergeReport
    from model.family import family, family_of

    report = MergeReport.load(arguments.report).table() if arguments.report else None
    dtype = getattr(torch, arguments.dtype)
    for warning in family(family_of(folder)).export(folder, arguments.out, arguments.format, dtype, report):
        print(f"note: {warning}")
    print(f"{folder} written to {arguments.out} ({arguments.format}, {arguments.dtype})", flush=True)
    if arguments.push:
        try:
            print(f"uploaded: {push_to_hub.push(arguments.out, arguments.push, token)}")
        except TesseraError as error:
            retry = f"hf upload {arguments.push} {arguments.out}"
            raise TesseraError(f"{error}; the export is in {arguments.out}: retry with `{retry}`") from error


if __name__ == "__main__":
    cli.run(main, parser)
