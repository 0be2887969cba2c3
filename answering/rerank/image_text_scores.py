"""Score the candidates of questions with an image-text model: each candidate as a statement, one `Signal` per question.

Shapes: N images, D feature size.
"""

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from answering.protocol import ImageInput
from answering.rerank.candidate_scores import Signal
from answering.rerank.statements import StatementForm, statement
from dataset.sample import Language


class ImageTextModel(Protocol):
    """Scores batches of images, each with its own texts."""

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One score per text of each image; higher is better."""
        ...


@runtime_checkable
class ImageTextModelWithPriors(ImageTextModel, Protocol):
    """A model whose scores are linear in the image features, so that the mean score over many images is the score of their mean."""

    def features(self, images: Sequence[ImageInput]) -> np.ndarray:
        """Image features [N, D] float32."""
        ...

    def score_with_priors(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        """For each image the scores of its texts, and their mean scores over the images whose mean features [D] are given."""
        ...


@dataclass(frozen=True, slots=True)
class BackgroundImages:
    """Features [N, D] of unrelated images, and the key of each image."""

    features: np.ndarray
    keys: tuple[str, ...] = ()

    def mean(self, exclude: Collection[str] = ()) -> np.ndarray:
        """Mean features [D] of all images except those with a key in `exclude`; of all images if no other is left."""
        included = [i for i, key in enumerate(self.keys) if key not in exclude]
        rows = self.features[included] if included else self.features
        return np.asarray(rows.mean(axis=0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class QuestionCandidates:
    """A question and the texts of its candidates. `keys`: the key of each image among the background images."""

    question: str
    language: Language
    images: tuple[ImageInput, ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageTextScorer:
    """An image-text model under the name of its choice. Without background images its signals have no prior."""

    name: str
    scorer: ImageTextModel
    languages: tuple[Language, ...] = ("en", "zh")
    statement_form: StatementForm = "sentence"
    background_images: BackgroundImages | None = None

    def signals(self, questions: Sequence[QuestionCandidates]) -> list[Signal | None]:
        """One signal per question: the mean over its images, each candidate as a statement. All questions share batches.

        None for a question without an image, or in a language that the scorer does not support.
        """
        images = [question.images if question.language in self.languages else () for question in questions]
        pairs = [(question, image) for question, own in zip(questions, images, strict=True) for image in own]
        scored = self._scores_and_priors(pairs)
        return [self._signal(list(islice(scored, len(own)))) if own else None for own in images]

    def _scores_and_priors(self, pairs: Sequence[tuple[QuestionCandidates, ImageInput]]) -> Iterator[tuple[list[float], list[float]]]:
        images = [image for _, image in pairs]
        groups = [[statement(q.question, text, q.language, self.statement_form) for text in q.texts] for q, _ in pairs]
        if self.background_images is None or not isinstance(self.scorer, ImageTextModelWithPriors):
            yield from ((scores, []) for scores in self.scorer.score_batch(images, groups))
        else:
            means = {keys: self.background_images.mean(keys) for keys in dict.fromkeys(question.keys for question, _ in pairs)}
            yield from self.scorer.score_with_priors(images, groups, [means[question.keys] for question, _ in pairs])

    def _signal(self, per_image: Sequence[tuple[list[float], list[float]]]) -> Signal:
        scores, priors = zip(*per_image, strict=True)
        return Signal(_means(scores), None if self.background_images is None else _means(priors))


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(values) for values in zip(*rows, strict=True))
