"""Pictures of the merged data that stand for "any picture": what a text scores on them is its prior."""

import dataclasses
from collections.abc import Sequence
from itertools import islice

from answering.model_fingerprint import digest
from answering.rerank.image_text_scores import BackgroundImages, ImageTextModelWithPriors
from dataset.loading.image_io import ImageError, open_image
from dataset.loading.sample_store import ImageRow, SampleStore
from evaluation.run.question_runner import NamedScorer

MIN_IMAGES = 2
"""Fewer pictures say nothing about any other."""


def with_background_images(scorers: Sequence[NamedScorer], store: SampleStore, size: int) -> list[NamedScorer]:
    """The scorers that can take a mean of pictures, with a bank of at most `size` pictures of the data; the others as they are.

    The pictures are drawn by a hash of their content, whatever split they are in: no reference is looked at, and each question's
    own pictures are left out of its prior. One that cannot be read has the next in its place.
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
    by_hash = sorted(store.images(), key=lambda row: digest(row.sha256))
    return list(islice(filter(_readable, by_hash), size))


def _readable(row: ImageRow) -> bool:
    try:
        open_image(row.path)
    except ImageError:
        return False
    return True
