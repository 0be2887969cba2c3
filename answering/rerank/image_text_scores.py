"""Score the candidates of questions with an image-text model: each candidate as a statement, one `Signal` per question.

Shapes: N images, D feature size.
"""

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
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
        selected = [i for i, question in enumerate(questions) if question.images and question.language in self.languages]
        pairs = [(i, image) for i in selected for image in questions[i].images]
        texts = {
            i: [statement(questions[i].question, text, questions[i].language, self.statement_form) for text in questions[i].texts]
            for i in selected
        }
        per_question: dict[int, list[tuple[list[float], list[float]]]] = {i: [] for i in selected}
        for (i, _), scored in zip(pairs, self._scores_and_priors(questions, pairs, texts), strict=True):
            per_question[i].append(scored)
        return [self._signal(per_question[i]) if i in per_question else None for i in range(len(questions))]

    def _scores_and_priors(
        self, questions: Sequence[QuestionCandidates], pairs: Sequence[tuple[int, ImageInput]], texts: dict[int, list[str]]
    ) -> Iterator[tuple[list[float], list[float]]]:
        images, groups = [image for _, image in pairs], [texts[i] for i, _ in pairs]
        if self.background_images is None or not isinstance(self.scorer, ImageTextModelWithPriors):
            for scores in self.scorer.score_batch(images, groups):
                yield scores, []
            return
        means = {keys: self.background_images.mean(keys) for keys in dict.fromkeys(questions[i].keys for i, _ in pairs)}
        yield from self.scorer.score_with_priors(images, groups, [means[questions[i].keys] for i, _ in pairs])

    def _signal(self, per_image: Sequence[tuple[list[float], list[float]]]) -> Signal:
        scores, priors = zip(*per_image, strict=True)
        return Signal(_means(scores), None if self.background_images is None else _means(priors))


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(values) for values in zip(*rows, strict=True))
