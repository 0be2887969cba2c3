"""Answer questions about images over HTTP: POST /vqa, and OpenAI's API under /v1. Stop with Ctrl+C or SIGTERM."""

import argparse
import logging
from functools import partial

import cli
import config as configuration
from answering.config import find_system
from errors import UsageError

parser = cli.Parser(__doc__ or "")


def main(arguments: argparse.Namespace) -> None:
    """Check the settings, then run the server."""
    config: configuration.Config = arguments.config
    try:
        from answering.answerer_factory import ScorerCache, check_decoding
        from serving.engine import Engine, LoadPlan
        from serving.search.image_index import open_index
        from serving.server import serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; install the service's dependencies with pip install 'tessera-vlm[serve]'"
        ) from error
    if not arguments.debug:
        cli.silence_libraries()
    log_to_standard_error()
    system = find_system(config.eval.systems, config.serve.system, "serve.system", config.name)
    check_decoding(config.decoding, [system])
    clip = config.search.clip or config.rerank.clip
    for key in ("rerank.clip", "search.clip"):
        configuration.check_model_paths(config, key)
    # Reranking and search share one CLIP if both settings name the same.
    scorer_cache, max_pixels = ScorerCache(), config.serve.max_pixels
    image_index = (
        partial(open_index, config.search, config.search_index_uri, clip, create=True, max_pixels=max_pixels, scorer_cache=scorer_cache)
        if clip
        else None
    )
    plan = LoadPlan(system.name, system, config.checkpoint_folder, config.result_folder / "plans", config.rerank, config.decoding)
    serve(config.serve, plan, image_index if config.serve.search else None, partial(Engine.load, scorer_cache=scorer_cache))


def log_to_standard_error() -> None:
    """Log one line for each request, and uvicorn's warnings, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("tessera.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)


if __name__ == "__main__":
    cli.run(main, parser)
