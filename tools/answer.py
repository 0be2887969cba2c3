"""Ask a system about pictures: one question, every picture of a folder, or question after question until `exit`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cli
import config as configuration
from answering.answerer_factory import build_answerer, build_reranker, check_decoding
from answering.batch_inference import BatchOptions, answer_folder, find_images
from answering.config import CheckpointSystem, DecodingConfig, System, scorer_keys, with_abstain_below
from answering.model_fingerprint import identity
from answering.protocol import Answerer
from answering.rendering import chinese_font, save_reply
from answering.reply import Reranker, question_request, reply
from dataset.loading.image_io import open_image
from errors import TesseraError, UsageError

parser = cli.Parser(__doc__ or "")
system_group = parser.add_mutually_exclusive_group()
system_group.add_argument("--checkpoint", default="latest", metavar="PATH", help="`newest` (the default) or a checkpoint folder")
system_group.add_argument("--system", metavar="NAME", help="a system of eval.systems")
image_group = parser.add_mutually_exclusive_group()
image_group.add_argument("--image", type=Path, action="append", metavar="PATH", help="a picture; may be given several times")
image_group.add_argument("--images", type=Path, metavar="DIR", help="caption and answer for every picture below this folder")
parser.add_argument("--question", metavar="TEXT", help="the question; without one, asks for pictures and questions until `exit`")
parser.add_argument("--caption", metavar="TEXT", default="Describe the picture in one sentence.", help="what --images asks for the caption")
parser.add_argument("--long", action="store_true", help="not a short answer, but up to eval.description_tokens")
parser.add_argument("--stream", action="store_true", help="print one answer as it comes, without candidates")
parser.add_argument(
    "--abstain-below", type=float, metavar="P", help='answer "not sure" where the credibility is lower (rerank.abstain_below)'
)
parser.add_argument("--save", type=Path, metavar="DIR", help="write JSON and a picture of each answer; of --images, answers.jsonl")


def main(arguments: argparse.Namespace) -> None:
    """Load a system and ask it."""
    config: configuration.Config = arguments.config
    if arguments.stream and (arguments.save or arguments.images):
        raise UsageError("--stream: prints one answer; it goes with neither --save nor --images")
    if arguments.images:
        find_images(arguments.images)
    for image in arguments.image or []:
        open_image(image)
    system = select_system(config, arguments)
    rerank = with_abstain_below(config.rerank, arguments.abstain_below)
    configuration.check_model_paths(config, *scorer_keys(rerank))
    check_decoding(config.decoding, [system])
    answerer = build_answerer(system, checkpoint_folder=config.checkpoint_folder)
    reranker = build_reranker(rerank, answerer.description, config.decoding, config.result_folder / "plans")
    if arguments.images:
        answer_images(config, arguments, answerer, reranker)
    elif arguments.question:
        ask(config, arguments, answerer, reranker, arguments.question, arguments.image or [])
    else:
        run_interactive(config, arguments, answerer, reranker)


def select_system(config: configuration.Config, arguments: argparse.Namespace) -> System:
    """The system that --system or --checkpoint names."""
    if arguments.system is None:
        return CheckpointSystem(name="checkpoint", kind="checkpoint", path=arguments.checkpoint)
    for system in config.eval.systems:
        if system.name == arguments.system:
            return system
    names = ", ".join(system.name for system in config.eval.systems) or "none"
    raise UsageError(f"--system {arguments.system}: eval.systems has no such system (it has: {names})")


def answer_images(config: configuration.Config, arguments: argparse.Namespace, answerer: Answerer, reranker: Reranker | None) -> None:
    """Every picture of a folder into a JSONL file."""
    name = arguments.images.resolve().name
    path = arguments.save / "answers.jsonl" if arguments.save else config.result_folder / "answers" / f"{name}.jsonl"
    options = BatchOptions(arguments.caption, arguments.question, decoding(config, arguments), config.eval.description_tokens)
    done = answer_folder(answerer, reranker, arguments.images, options, path, identity(answerer.description))
    print(f"{done.images} pictures ({done.reused} stood there already, {done.errors} failed): {path}")


def run_interactive(config: configuration.Config, arguments: argparse.Namespace, answerer: Answerer, reranker: Reranker | None) -> None:
    """Question after question; an empty one asks for another picture."""
    images: list[Path] | None = arguments.image
    while True:
        if images is None:
            name = cli.ask("picture (path, empty for none, exit to end): ")
        else:
            name = cli.ask("question (empty for another picture, exit to end): ")
        if name is None:
            return
        try:
            if images is not None and name:
                ask(config, arguments, answerer, reranker, name, images)
            else:
                images = None if images is not None else [checked_image_path(name)] if name else []
        except TesseraError as error:
            print(f"error: {error}")


def checked_image_path(name: str) -> Path:
    """The path of a picture that can be opened. Raises PictureError."""
    path = Path(name).expanduser()
    open_image(path)
    return path


def ask(
    config: configuration.Config,
    arguments: argparse.Namespace,
    answerer: Answerer,
    reranker: Reranker | None,
    question: str,
    images: Sequence[Path],
) -> None:
    """Print the answer to one question, and save it where that was asked for. Raises TesseraError when it fails."""
    request = question_request("question", question, images, "conversation" if arguments.long else "vqa")
    if arguments.stream:
        for piece in answerer.stream(request, decoding(config, arguments)):
            print(piece, end="", flush=True)
        print()
        return
    (answer,) = reply(answerer, reranker, [request], decoding(config, arguments))
    if answer.answer.error:
        raise TesseraError(answer.answer.error)
    print(answer.chosen, *answer.lines(), sep="\n  ")
    if arguments.save:
        path = save_reply(answer, images, arguments.save, identity(answerer.description))
        print(f"saved: {path} and {path.with_suffix('.json').name}")
        if chinese_font() is None:
            print("no installed font has Chinese characters, so they are boxes in the PNG; the package fonts-noto-cjk has one")


def decoding(config: configuration.Config, arguments: argparse.Namespace) -> DecodingConfig:
    """As configured, longer for --long."""
    max_new_tokens = config.eval.description_tokens if arguments.long else config.decoding.max_new_tokens
    return dataclasses.replace(config.decoding, max_new_tokens=max_new_tokens)


if __name__ == "__main__":
    cli.run(main, parser)
