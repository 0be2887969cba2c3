"""Questions and their candidates before a picture-text scorer: statements in, a signal a question out."""

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
    """A scorer of many pictures at once, each with texts of its own."""

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One score for each text of each picture; higher fits better."""
        ...


@runtime_checkable
class ImageTextModelWithPriors(ImageTextModel, Protocol):
    """A scorer whose scores are linear in a picture's features, so that a mean of features stands for many pictures."""

    def features(self, images: Sequence[ImageInput]) -> np.ndarray:
        """[n, width] float32, one row a picture."""
        ...

    def score_with_priors(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        """Of each picture: the scores of its texts, and their mean scores over the pictures whose mean features [width] are given."""
        ...


@dataclass(frozen=True, slots=True)
class BackgroundImages:
    """Features [n, width] of unrelated pictures, and what each picture is known by."""

    features: np.ndarray
    keys: tuple[str, ...] = ()

    def mean(self, exclude: Collection[str] = ()) -> np.ndarray:
        """Mean features [width] of all pictures but those known by `without`; of all where no other is left."""
        included = [i for i, key in enumerate(self.keys) if key not in exclude]
        rows = self.features[included] if included else self.features
        return np.asarray(rows.mean(axis=0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class QuestionCandidates:
    """A question with what its candidates say. `keys`: what each picture is known by in a bank."""

    question: str
    language: Language
    images: tuple[ImageInput, ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageTextScorer:
    """A scorer by the name of its choice. Without a bank its signals have no prior."""

    name: str
    scorer: ImageTextModel
    languages: tuple[Language, ...] = ("en", "zh")
    statement_form: StatementForm = "sentence"
    background_images: BackgroundImages | None = None

    def signals(self, questions: Sequence[QuestionCandidates]) -> list[Signal | None]:
        """One a question: the mean over its pictures, each candidate as a statement; None for one without a picture, or in a
        language that is not the scorer's. All pictures and statements are encoded in common batches."""
        wanted = [i for i, one in enumerate(questions) if one.images and one.language in self.languages]
        pairs = [(i, image) for i in wanted for image in questions[i].images]
        texts = {
            i: [statement(questions[i].question, text, questions[i].language, self.statement_form) for text in questions[i].texts]
            for i in wanted
        }
        found: dict[int, list[tuple[list[float], list[float]]]] = {i: [] for i in wanted}
        for (i, _), scored in zip(pairs, self._scores_and_priors(questions, pairs, texts), strict=True):
            found[i].append(scored)
        return [self._signal(found[i]) if i in found else None for i in range(len(questions))]

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
