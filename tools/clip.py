"""Ask CLIP about pictures."""

import argparse
import re
from pathlib import Path

from PIL import Image

import cli
import config as configuration
from answering.build import load_scorer
from dataset.pictures import open_picture
from errors import TesseraError, UsageError
from visual.clip import ClipScorer
from visual.fetch import fetch, is_address


def arguments() -> cli.Parser:
    """The command line: one subcommand for each use."""
    parser = cli.Parser(__doc__ or "", configured=False)
    what = "which of some labels fits a picture best"
    classify = parser.add_parts().add_parser("classify", description=what, help=what)
    classify.add_argument("--image", metavar="PATH", help="a file or an http(s) address; without it, asks for one until `exit`")
    classify.add_argument("--labels", required=True, metavar="A,B,...", help="labels with commas (, or ，) between them")
    classify.set_defaults(use=classification)
    return parser


def classification(parsed: argparse.Namespace) -> None:
    """Print each label's probability, the likeliest first."""
    labels = [label for label in map(str.strip, re.split("[,，]", parsed.labels)) if label]
    if not labels:
        raise UsageError("--labels: at least one label is expected, such as cat,dog")
    config: configuration.Config = parsed.config
    if config.rerank.clip is None:
        raise UsageError("rerank.clip: it is null; name a CLIP folder or hub name, such as rerank.clip=openai/clip-vit-base-patch32")
    configuration.check_parts(config, "rerank.clip")
    scorer = load_scorer(config.rerank.clip)
    if parsed.image:
        show(scorer, parsed.image, labels)
        return
    while (name := cli.ask("image (path or address, exit to end): ")) is not None:
        if name:
            try:
                show(scorer, name, labels)
            except TesseraError as error:
                print(f"error: {error}")


def show(scorer: ClipScorer, name: str, labels: list[str]) -> None:
    """Print the labels of one picture."""
    found = sorted(zip(scorer.probabilities(picture(name), labels), labels, strict=True), key=lambda pair: -pair[0])
    for probability, label in found:
        print(f"{probability:7.2%}  {label}")


def picture(name: str) -> Image.Image:
    """The picture at a path or address."""
    return open_picture(fetch(name) if is_address(name) else Path(name).expanduser())


def main(parsed: argparse.Namespace) -> None:
    """Do what was asked for."""
    parsed.use(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
