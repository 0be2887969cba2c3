"""Ask a system about images: a single question, all images of a folder, or an interactive session."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cli
import config as configuration
from answering.config import CheckpointSystem, DecodingConfig, System, find_system, for_descriptions, scorer_keys, with_abstain_below
from errors import TesseraError, UsageError

# What imports torch is imported where it is used: --help and wrong arguments need none of it.
if TYPE_CHECKING:
    from answering.protocol import Answerer
    from answering.reply import Reranker

parser = cli.Parser(__doc__ or "")
system_group = parser.add_mutually_exclusive_group()
system_group.add_argument("--checkpoint", default="latest", metavar="PATH", help="`latest` (the default) or a checkpoint folder")
system_group.add_argument("--system", metavar="NAME", help="name of a system of eval.systems")
image_group = parser.add_mutually_exclusive_group()
image_group.add_argument("--image", type=Path, action="append", metavar="PATH", help="image file; may be repeated")
image_group.add_argument("--images", type=Path, metavar="DIR", help="caption and answer all images below this folder")
parser.add_argument("--question", metavar="TEXT", help="the question; without it, prompts for images and questions until `exit`")
parser.add_argument(
    "--caption", metavar="TEXT", default="Describe the picture in one sentence.", help="prompt for the captions of --images"
)
parser.add_argument("--long", action="store_true", help="long answer of up to eval.description_tokens tokens")
parser.add_argument("--stream", action="store_true", help="print a single answer token by token, without candidates")
parser.add_argument(
    "--abstain-below", type=float, metavar="P", help='abstain with "not sure" if the confidence is lower (rerank.abstain_below)'
)
parser.add_argument(
    "--save", type=Path, metavar="DIR", help="write each answer as JSON and as a PNG image; with --images, write answers.jsonl"
)


def main(arguments: argparse.Namespace) -> None:
    """Load the system and answer."""
    config: configuration.Config = arguments.config
    if arguments.stream and (arguments.save or arguments.images):
        raise UsageError("--stream: prints a single answer; it cannot be combined with --save or --images")
    system = _system(config, arguments)
    rerank = with_abstain_below(config.rerank, arguments.abstain_below)
    configuration.check_model_paths(config, *scorer_keys(rerank))
    from dataset.loading.image_io import open_image

    for image in arguments.image or []:
        open_image(image)
    from answering.answerer_factory import build_answerer, build_reranker, check_decoding
    from answering.batch_inference import find_images

    if arguments.images:
        find_images(arguments.images)
    check_decoding(config.decoding, [system])
    answerer = build_answerer(system, checkpoint_folder=config.checkpoint_folder)
    reranker = build_reranker(rerank, answerer.description, config.decoding, config.result_folder / "plans")
    # --long takes the decoding settings of descriptions.
    decoding = for_descriptions(config.decoding, config.eval.description_tokens) if arguments.long else config.decoding
    session = Session(arguments, answerer, reranker, decoding)
    if arguments.images:
        answer_images(config, session)
    elif arguments.question:
        session.ask(arguments.question, arguments.image or [])
    else:
        session.run_interactive()


def _system(config: configuration.Config, arguments: argparse.Namespace) -> System:
    """The system that --system or --checkpoint selects."""
    if arguments.system is None:
        return CheckpointSystem(name="checkpoint", kind="checkpoint", path=arguments.checkpoint)
    return find_system(config.eval.systems, arguments.system, "--system")


def answer_images(config: configuration.Config, session: "Session") -> None:
    """Caption and answer all images of a folder into a JSONL file."""
    from answering.batch_inference import BatchOptions, answer_folder, list_failed
    from answering.model_fingerprint import identity

    arguments, answerer = session.arguments, session.answerer
    name = arguments.images.resolve().name
    path = arguments.save / "answers.jsonl" if arguments.save else config.result_folder / "answers" / f"{name}.jsonl"
    options = BatchOptions(arguments.caption, arguments.question, session.decoding, config.eval.description_tokens)
    result = answer_folder(answerer, session.reranker, arguments.images, options, path, identity(answerer.description))
    print(f"{result.images} images ({result.reused} already answered, {len(result.failed)} failed): {path}")
    for line in list_failed(result.failed, path.with_suffix(".failed.jsonl")):
        print(line)


@dataclass(frozen=True)
class Session:
    """A loaded system, what reranks its candidates (None: the first one is the answer), and how it is asked."""

    arguments: argparse.Namespace
    answerer: "Answerer"
    reranker: "Reranker | None"
    decoding: DecodingConfig

    def run_interactive(self) -> None:
        """Prompt for questions until `exit`; an empty one prompts for another image."""
        images: list[Path] | None = self.arguments.image
        while True:
            line = cli.ask(
                "image (path, empty for none, exit to end): " if images is None else "question (empty for another image, exit to end): "
            )
            if line is None:
                return
            try:
                if images is not None and line:
                    self.ask(line, images)
                else:
                    images = None if images is not None else [checked_image_path(line)] if line else []
            except TesseraError as error:
                print(f"error: {error}")

    def ask(self, question: str, images: Sequence[Path]) -> None:
        """Print the answer to a question about image files, and save it with --save. Raises TesseraError if the question failed."""
        from answering.protocol import StreamedText
        from answering.reply import CUT, question_request, reply

        request = question_request("question", question, images, "conversation" if self.arguments.long else "vqa")
        if self.arguments.stream:
            pieces = StreamedText(self.answerer.stream(request, self.decoding))
            for piece in pieces:
                print(piece, end="", flush=True)
            print(*([f"\n  {CUT}"] if pieces.finish_reason == "length" else []))
            return
        (answer,) = reply(self.answerer, self.reranker, [request], self.decoding)
        if answer.answer.error:
            raise TesseraError(answer.answer.error)
        print(answer.chosen, *answer.lines(), sep="\n  ")
        if self.arguments.save:
            from answering.model_fingerprint import identity
            from answering.rendering import save_reply

            path = save_reply(answer, images, self.arguments.save, identity(self.answerer.description))
            print(f"saved: {path} and {path.with_suffix('.json').name}")


def checked_image_path(name: str) -> Path:
    """Path of an image file. Raises ImageError if it cannot be opened."""
    from dataset.loading.image_io import open_image

    path = Path(name).expanduser()
    open_image(path)
    return path


if __name__ == "__main__":
    cli.run(main, parser)
