"""Pictures of the merged data that stand for "any picture": what a text scores on them is its prior."""

import dataclasses
from collections.abc import Sequence
from itertools import islice

from answering.model_fingerprint import digest
from answering.rerank.image_text_scores import PictureBank, PriorScorer
from dataset.loading.image_io import PictureError, open_picture
from dataset.loading.sample_store import ImageRow, Store
from evaluation.run.question_runner import NamedScorer

FEWEST = 2
"""Fewer pictures say nothing about any other."""


def with_banks(scorers: Sequence[NamedScorer], store: Store, size: int) -> list[NamedScorer]:
    """The scorers that can take a mean of pictures, with a bank of at most `size` pictures of the data; the others as they are.

    The pictures are drawn by a hash of their content, whatever split they are in: no reference is looked at, and each question's
    own pictures are left out of its prior. One that cannot be read has the next in its place.
    """
    rows = _drawn(store, size)
    if len(rows) < FEWEST:
        return list(scorers)
    return [
        dataclasses.replace(scorer, bank=_bank(scorer.scorer, rows)) if isinstance(scorer.scorer, PriorScorer) else scorer
        for scorer in scorers
    ]


def _bank(scorer: PriorScorer, rows: Sequence[ImageRow]) -> PictureBank:
    return PictureBank(scorer.features([row.path for row in rows]), tuple(row.sha256 for row in rows))


def _drawn(store: Store, size: int) -> list[ImageRow]:
    by_hash = sorted(store.images(), key=lambda row: digest(row.sha256))
    return list(islice(filter(_readable, by_hash), size))


def _readable(row: ImageRow) -> bool:
    try:
        open_picture(row.path)
    except PictureError:
        return False
    return True
