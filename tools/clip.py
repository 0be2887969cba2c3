"""Ask CLIP about pictures."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

import cli
import config as configuration
from answering.answerer_factory import load_scorer
from answering.batch_inference import find_images
from atomic_io import atomic_write
from dataset.loading.image_io import open_image
from errors import TesseraError, UsageError
from visual.clip_scorer import ClipScorer
from visual.image_url import fetch, is_url

if TYPE_CHECKING:
    from serving.search.image_index import ImageIndex

MAX_SHOWN_FAILURES = 10
"""Files that could not be read of which the names are printed."""


def arguments() -> cli.Parser:
    """The command line: one subcommand for each use."""
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parts = parser.add_subcommands()
    what = "which of some labels fits a picture best"
    classify = parts.add_parser("classify", description=what, help=what)
    classify.add_argument("--image", metavar="PATH", help="a file or an http(s) address; without it, asks for one until `exit`")
    classify.add_argument("--labels", required=True, metavar="A,B,...", help="labels with commas (, or ，) between them")
    classify.set_defaults(use=run_classify)
    what = "bring the index of a folder's pictures up to date: new and changed ones are read, vanished ones removed"
    index = parts.add_parser("index", description=what, help=what)
    index.add_argument("--images", type=Path, metavar="DIR", help="folder of pictures (default: search.images)")
    index.add_argument("--reindex", action="store_true", help="where another CLIP model made the index: make it anew with this one")
    index.set_defaults(use=run_index)
    what = "the pictures of the index that fit a text best, or are most like a picture"
    search = parts.add_parser("search", description=what, help=what)
    question = search.add_mutually_exclusive_group(required=True)
    question.add_argument("--text", metavar="TEXT", help="what to look for")
    question.add_argument("--image", metavar="PATH", help="a file or an http(s) address: look for pictures like it")
    search.add_argument("-k", type=int, default=5, metavar="N", help="pictures to find (default: %(default)s)")
    search.add_argument("--save", type=Path, metavar="PNG", help="write the thumbnails there (default: results/<name>/search.png)")
    search.set_defaults(use=run_search)
    return parser


def run_classify(parsed: argparse.Namespace) -> None:
    """Print each label's probability, the likeliest first."""
    labels = [label for label in map(str.strip, re.split("[,，]", parsed.labels)) if label]
    if not labels:
        raise UsageError("--labels: at least one label is expected, such as cat,dog")
    scorer = load_scorer(clip_name(parsed.config, "rerank.clip"))
    if parsed.image:
        print_labels(scorer, parsed.image, labels)
        return
    while (name := cli.ask("image (path or address, exit to end): ")) is not None:
        if name:
            try:
                print_labels(scorer, name, labels)
            except TesseraError as error:
                print(f"error: {error}")


def print_labels(scorer: ClipScorer, name: str, labels: list[str]) -> None:
    """Print the labels of one picture."""
    results = sorted(zip(scorer.probabilities(load_image(name), labels), labels, strict=True), key=lambda pair: -pair[0])
    for probability, label in results:
        print(f"{probability:7.2%}  {label}")


def load_image(name: str) -> Image.Image:
    """The picture at a path or address."""
    return open_image(fetch(name) if is_url(name) else Path(name).expanduser())


def run_index(parsed: argparse.Namespace) -> None:
    """Bring the index up to date with a folder and say what was done."""
    config: configuration.Config = parsed.config
    folder = parsed.images or config.search.images
    if folder is None:
        raise UsageError("--images: name a folder of pictures (or search.images in the configuration)")
    find_images(folder)
    index = open_configured_index(config, create=True, reindex=parsed.reindex)
    from serving.search.folder_indexer import index_folder

    result = index_folder(index, folder)
    print(f"{config.search_index_uri}: {len(index):,} pictures")
    print(
        f"added {result.added:,}, removed {result.removed:,}; files unchanged {result.unchanged:,}, moved or copied {result.already_indexed:,}"
    )
    print(result.search)
    if result.failed:
        print(f"not readable: {len(result.failed):,}", *result.failed[:MAX_SHOWN_FAILURES], sep="\n  ")


def run_search(parsed: argparse.Namespace) -> None:
    """Print what was found, best first, and write its thumbnails on one sheet."""
    config: configuration.Config = parsed.config
    if parsed.k < 1:
        raise UsageError(f"-k {parsed.k}: at least 1 is needed")
    if parsed.text is not None and not parsed.text.strip():
        raise UsageError("--text: it is empty")
    if parsed.save is not None and parsed.save.suffix.lower() != ".png":
        raise UsageError(f"--save {parsed.save}: a file that ends with .png is expected")
    query = parsed.text or load_image(parsed.image)
    index = open_configured_index(config)
    from serving.search.contact_sheet import contact_sheet, result_lines

    results = index.search_by_text(query, parsed.k) if isinstance(query, str) else index.search_by_image(query, parsed.k)
    print(*result_lines(results), sep="\n")
    path: Path = parsed.save or config.result_folder / "search.png"
    with atomic_write(path) as temporary_path:
        contact_sheet(index, query, results).save(temporary_path)
    print(f"{index.state()}; thumbnails: {path}")


def open_configured_index(config: configuration.Config, *, create: bool = False, reindex: bool = False) -> "ImageIndex":
    """The index that the configuration names, with the CLIP that it names."""
    clip = clip_name(config, "search.clip" if config.search.clip else "rerank.clip")
    try:
        from serving.search.image_index import open_index
    except ModuleNotFoundError as error:
        if error.name != "lancedb":
            raise
        raise UsageError("the picture search needs LanceDB: pip install 'tessera-vlm[search]'") from error
    return open_index(config.search, config.search_index_uri, clip, create=create, reindex=reindex, max_pixels=config.data.max_pixels)


def clip_name(config: configuration.Config, key: str) -> str:
    """The CLIP that a key names. Raises UsageError when it names none, or a folder that is missing."""
    configuration.check_model_paths(config, key)
    name = config.search.clip if key == "search.clip" else config.rerank.clip
    if name is None:
        raise UsageError(f"{key}: it is null; name a CLIP folder or hub name, such as {key}=openai/clip-vit-base-patch32")
    return name


def main(parsed: argparse.Namespace) -> None:
    """Do what was asked for."""
    parsed.use(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
