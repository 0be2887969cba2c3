"""Serve the demo page: ask about images, compare systems, search images. Stop with Ctrl+C."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cli
import config as configuration
from answering.config import System, find_system, scorer_keys
from errors import TesseraError, UsageError

# What imports torch is imported where it is used: --help and wrong arguments need none of it.
if TYPE_CHECKING:
    from answering.answerer_factory import ScorerCache
    from serving.demo.session import Session
    from serving.search.image_index import ImageIndex

T = TypeVar("T")

NUM_EXAMPLES = 6
"""Number of example images on the page."""

parser = cli.Parser(__doc__ or "")
parser.add_argument("--system", metavar="NAME", help="a system of eval.systems (default: the latest checkpoint)")
parser.add_argument("--against", metavar="NAME", help="a second system of eval.systems, to compare side by side")
parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0: a free port (default: %(default)s)")


def main(arguments: argparse.Namespace) -> None:
    """Load the models and serve the page. If the checkpoint or the index is missing, the page shows the reason."""
    config: configuration.Config = arguments.config
    if not 0 <= arguments.port <= 65535:
        raise UsageError(f"--port {arguments.port}: expected 0 to 65535")
    systems = config.eval.systems
    other = find_system(systems, arguments.against, "--against") if arguments.against else None
    main_system = find_system(systems, arguments.system, "--system", config.name)
    configuration.check_model_paths(config, *scorer_keys(config.rerank))
    try:
        from answering.answerer_factory import ScorerCache, check_decoding
        from serving.demo.page import launch
        from serving.demo.page_actions import DemoBackends
        from serving.http.cross_site import CrossSiteRules
        from serving.http.http_protocol import listening_socket
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; install the demo's dependencies with pip install 'tessera-vlm[demo]'") from error
    # Before the models are loaded: a taken port is said at once.
    listening_socket(arguments.host, arguments.port, "--host, --port").close()
    check_decoding(config.decoding, [main_system, *([] if other is None else [other])])
    scorer_cache = ScorerCache()
    backends = DemoBackends(
        session=load_or_reason(lambda: session(config, main_system, scorer_cache)),
        other=None if other is None else session(config, other, scorer_cache),
        scorer=None if config.rerank.clip is None else scorer_cache.load(config.rerank.clip),
        index=load_or_reason(lambda: build_index(config, scorer_cache)),
        examples=examples(config),
    )
    rules = CrossSiteRules((arguments.host, *config.serve.allowed_hosts), config.serve.allowed_origins)
    launch(backends, arguments.host, arguments.port, rules)


def session(config: configuration.Config, system: System, scorer_cache: "ScorerCache") -> "Session":
    """Load a system and its reranker."""
    from answering.answerer_factory import build_answerer, build_reranker
    from serving.demo.session import Session

    answerer = build_answerer(system, checkpoint_folder=config.checkpoint_folder)
    reranker = build_reranker(
        config.rerank, answerer.description, config.decoding, config.result_folder / "plans", scorer_cache=scorer_cache
    )
    return Session(system.name, answerer, reranker, config.decoding, config.eval.description_tokens, system)


def build_index(config: configuration.Config, scorer_cache: "ScorerCache") -> "ImageIndex":
    """Open the index of the image search; an empty index is filled from search.images, and files that cannot be read are printed."""
    from answering.batch_inference import SEARCH_FAILED_FILE, list_failed
    from serving.search.folder_indexer import index_folder
    from serving.search.image_index import open_index

    clip = config.search.clip or config.rerank.clip
    if clip is None:
        raise UsageError("search.clip and rerank.clip are null")
    index = open_index(
        config.search, config.search_index_uri, clip, create=True, max_pixels=config.data.max_pixels, scorer_cache=scorer_cache
    )
    if len(index) == 0 and _has_folder(config):
        result = index_folder(index, config.search.images or Path())
        for line in list_failed(result.failed, config.result_folder / SEARCH_FAILED_FILE):
            print(line)
    return index


def examples(config: configuration.Config) -> list[Path]:
    """Up to NUM_EXAMPLES images of search.images, evenly spread over the folder."""
    if not _has_folder(config):
        return []
    from answering.batch_inference import find_images

    images = find_images(config.search.images or Path())
    return images[:: max(1, len(images) // NUM_EXAMPLES)][:NUM_EXAMPLES]


def _has_folder(config: configuration.Config) -> bool:
    return config.search.images is not None and config.search.images.is_dir()


def load_or_reason(load: Callable[[], T]) -> T | str:
    """The loaded object, or the reason why it cannot be loaded, which is also printed."""
    try:
        return load()
    except TesseraError as error:
        print(f"not available: {error}")
        return str(error)


if __name__ == "__main__":
    cli.run(main, parser)
