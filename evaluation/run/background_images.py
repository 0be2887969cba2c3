"""Background images: a sample of the merged data's images. A text's mean score on them is its prior."""

import dataclasses
from collections.abc import Sequence
from itertools import islice

from answering.model_fingerprint import digest
from answering.rerank.image_text_scores import BackgroundImages, ImageTextModelWithPriors
from dataset.loading.image_io import ImageError, open_image
from dataset.loading.sample_store import ImageRow, SampleStore
from evaluation.run.question_runner import NamedScorer

MIN_IMAGES = 2
"""Smallest number of background images for which priors are computed."""


def with_background_images(scorers: Sequence[NamedScorer], store: SampleStore, size: int) -> list[NamedScorer]:
    """Add at most `size` background images to the scorers that support priors; other scorers are returned unchanged.

    The images are selected by a hash of their content, from all splits; unreadable ones are skipped. No reference is read, and a
    question's own images are excluded from its prior.
    """
    rows = _sample_images(store, size)
    if len(rows) < MIN_IMAGES:
        return list(scorers)
    return [
        dataclasses.replace(scorer, background_images=_background_images(scorer.scorer, rows))
        if isinstance(scorer.scorer, ImageTextModelWithPriors)
        else scorer
        for scorer in scorers
    ]


def _background_images(scorer: ImageTextModelWithPriors, rows: Sequence[ImageRow]) -> BackgroundImages:
    return BackgroundImages(scorer.features([row.path for row in rows]), tuple(row.sha256 for row in rows))


def _sample_images(store: SampleStore, size: int) -> list[ImageRow]:
    """The first `size` readable images in the order of a hash of their content."""
    by_hash = sorted(store.images(), key=lambda row: digest(row.sha256))
    return list(islice(filter(_readable, by_hash), size))


def _readable(row: ImageRow) -> bool:
    try:
        open_image(row.path)
    except ImageError:
        return False
    return True
