"""Use CLIP: classify images, index a folder of images, search the index."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import cli
import config as configuration
from atomic_io import atomic_write
from errors import TesseraError, UsageError

# What imports torch is imported where it is used: --help and wrong arguments need none of it.
if TYPE_CHECKING:
    from PIL import Image

    from serving.search.image_index import ImageIndex
    from visual.clip_scorer import ClipScorer


def arguments() -> cli.Parser:
    """The command line, with the subcommands classify, index and search."""
    parser = cli.Parser(__doc__ or "", takes_config=False)
    classify = parser.add_part("classify", "find the label that fits an image best", run_classify, takes_config=True)
    classify.add_argument("--image", metavar="PATH", help="a file or an http(s) URL; without it, asks for images until `exit`")
    classify.add_argument("--labels", required=True, metavar="A,B,...", help="labels, separated by commas (, or ，)")
    description = "update the index from a folder: add new and changed images, remove deleted ones"
    index = parser.add_part("index", description, run_index, takes_config=True)
    index.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: search.images)")
    index.add_argument("--reindex", action="store_true", help="rebuild the index if it was built with another CLIP model")
    description = "find the images of the index that fit a text best, or are most similar to an image"
    search = parser.add_part("search", description, run_search, takes_config=True)
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", metavar="TEXT", help="text to search for")
    query.add_argument("--image", metavar="PATH", help="a file or an http(s) URL: search for similar images")
    search.add_number("-k", 5, "number of results")
    search.add_argument("--save", type=Path, metavar="PNG", help="file for the thumbnails (default: results/<name>/search.png)")
    return parser


def run_classify(parsed: argparse.Namespace) -> None:
    """Print the probability of each label, the highest first."""
    labels = [label for label in map(str.strip, re.split("[,，]", parsed.labels)) if label]
    if not labels:
        raise UsageError("--labels: at least one label is required, such as cat,dog")
    from answering.answerer_factory import load_scorer

    scorer = load_scorer(clip_name(parsed.config, "rerank.clip"))
    if parsed.image:
        print_labels(scorer, parsed.image, labels)
        return
    while (name := cli.ask("image (path or URL, exit to end): ")) is not None:
        if name:
            try:
                print_labels(scorer, name, labels)
            except TesseraError as error:
                print(f"error: {error}")


def print_labels(scorer: "ClipScorer", name: str, labels: list[str]) -> None:
    """Print the labels of one image. name: path or URL."""
    results = sorted(zip(scorer.probabilities(load_image(name), labels), labels, strict=True), key=lambda pair: -pair[0])
    for probability, label in results:
        print(f"{probability:7.2%}  {label}")


def load_image(name: str) -> "Image.Image":
    """The image at a path or URL."""
    from dataset.loading.image_io import open_image
    from visual.image_url import fetch, is_url

    return open_image(fetch(name) if is_url(name) else Path(name).expanduser())


def run_index(parsed: argparse.Namespace) -> None:
    """Update the index from a folder and print the changes."""
    config: configuration.Config = parsed.config
    folder = parsed.images or config.search.images
    if folder is None:
        raise UsageError("--images: name a folder of images (or set search.images in the configuration)")
    from answering.batch_inference import SEARCH_FAILED_FILE, find_images, list_failed

    find_images(folder)
    index = open_configured_index(config, create=True, reindex=parsed.reindex)
    from serving.search.folder_indexer import index_folder

    result = index_folder(index, folder)
    print(f"{config.search_index_uri}: {len(index):,} images")
    print(
        f"added {result.added:,}, removed {result.removed:,}; "
        f"files unchanged {result.unchanged:,}, moved or copied {result.already_indexed:,}"
    )
    print(result.search)
    lines = list_failed(result.failed, config.result_folder / SEARCH_FAILED_FILE)
    if result.failed:
        print(f"unreadable files: {len(result.failed):,}", *lines, sep="\n")


def run_search(parsed: argparse.Namespace) -> None:
    """Print the results, best first, and write a contact sheet of their thumbnails."""
    config: configuration.Config = parsed.config
    if parsed.text is not None and not parsed.text.strip():
        raise UsageError("--text: the text is empty")
    if parsed.save is not None and parsed.save.suffix.lower() != ".png":
        raise UsageError(f"--save {parsed.save}: expected a file name that ends with .png")
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
    """Open the index of the configuration with the CLIP of the configuration."""
    clip = clip_name(config, "search.clip" if config.search.clip else "rerank.clip")
    try:
        from serving.search.image_index import open_index
    except ModuleNotFoundError as error:
        if error.name != "lancedb":
            raise
        raise UsageError("the image search needs LanceDB: pip install 'tessera-vlm[search]'") from error
    return open_index(config.search, config.search_index_uri, clip, create=create, reindex=reindex, max_pixels=config.data.max_pixels)


def clip_name(config: configuration.Config, key: str) -> str:
    """The CLIP that a key names. Raises UsageError if the key is null or names a missing folder."""
    configuration.check_model_paths(config, key)
    name = config.search.clip if key == "search.clip" else config.rerank.clip
    if name is None:
        raise UsageError(f"{key} is null; set it to a CLIP folder or hub name, such as {key}=openai/clip-vit-base-patch32")
    return name


def main(parsed: argparse.Namespace) -> None:
    """Run the chosen subcommand."""
    parsed.command(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
