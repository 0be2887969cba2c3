"""Questions and their candidates before a picture-text scorer: statements in, a signal a question out."""

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from answering.protocol import Picture
from answering.rerank.candidate_scores import Signal
from answering.rerank.statements import Wording, statement
from dataset.sample import Language


class BatchScorer(Protocol):
    """A scorer of many pictures at once, each with texts of its own."""

    def score_batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One score for each text of each picture; higher fits better."""
        ...


@runtime_checkable
class PriorScorer(BatchScorer, Protocol):
    """A scorer whose scores are linear in a picture's features, so that a mean of features stands for many pictures."""

    def features(self, pictures: Sequence[Picture]) -> np.ndarray:
        """[n, width] float32, one row a picture."""
        ...

    def score_with_priors(
        self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]], backgrounds: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        """Of each picture: the scores of its texts, and their mean scores over the pictures whose mean features [width] are given."""
        ...


@dataclass(frozen=True, slots=True)
class PictureBank:
    """Features [n, width] of unrelated pictures, and what each picture is known by."""

    features: np.ndarray
    keys: tuple[str, ...] = ()

    def mean(self, without: Collection[str] = ()) -> np.ndarray:
        """Mean features [width] of all pictures but those known by `without`; of all where no other is left."""
        kept = [i for i, key in enumerate(self.keys) if key not in without]
        rows = self.features[kept] if kept else self.features
        return np.asarray(rows.mean(axis=0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Scorable:
    """A question with what its candidates say. `keys`: what each picture is known by in a bank."""

    question: str
    language: Language
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PictureScorer:
    """A scorer by the name of its choice. Without a bank its signals have no prior."""

    name: str
    scorer: BatchScorer
    languages: tuple[Language, ...] = ("en", "zh")
    wording: Wording = "sentence"
    bank: PictureBank | None = None

    def signals(self, asked: Sequence[Scorable]) -> list[Signal | None]:
        """One a question: the mean over its pictures, each candidate as a statement; None for one without a picture, or in a
        language that is not the scorer's. All pictures and statements are encoded in common batches."""
        wanted = [i for i, one in enumerate(asked) if one.pictures and one.language in self.languages]
        pairs = [(i, picture) for i in wanted for picture in asked[i].pictures]
        texts = {i: [statement(asked[i].question, text, asked[i].language, self.wording) for text in asked[i].texts] for i in wanted}
        found: dict[int, list[tuple[list[float], list[float]]]] = {i: [] for i in wanted}
        for (i, _), scored in zip(pairs, self._scored(asked, pairs, texts), strict=True):
            found[i].append(scored)
        return [self._signal(found[i]) if i in found else None for i in range(len(asked))]

    def _scored(
        self, asked: Sequence[Scorable], pairs: Sequence[tuple[int, Picture]], texts: dict[int, list[str]]
    ) -> Iterator[tuple[list[float], list[float]]]:
        pictures, groups = [picture for _, picture in pairs], [texts[i] for i, _ in pairs]
        if self.bank is None or not isinstance(self.scorer, PriorScorer):
            for scores in self.scorer.score_batch(pictures, groups):
                yield scores, []
            return
        means = {keys: self.bank.mean(keys) for keys in dict.fromkeys(asked[i].keys for i, _ in pairs)}
        yield from self.scorer.score_with_priors(pictures, groups, [means[asked[i].keys] for i, _ in pairs])

    def _signal(self, by_picture: Sequence[tuple[list[float], list[float]]]) -> Signal:
        scores, priors = zip(*by_picture, strict=True)
        return Signal(_means(scores), None if self.bank is None else _means(priors))


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(values) for values in zip(*rows, strict=True))
