"""How sure a mean and a difference are: paired resampling over pictures, and Holm over all comparisons.

Questions about one picture are not independent, so the picture is the unit: its questions are drawn together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from errors import UsageError

SIGNIFICANCE_LEVEL = 0.05
"""Largest adjusted p-value of a verdict; the intervals cover 1 - LEVEL."""
_MAX_BLOCK_SIZE = 2_000_000  # random numbers drawn at a time: 16 MB

Verdict = Literal["a", "b", "not shown"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean score of a minus mean score of b over the same questions."""

    difference: float
    ci95: Interval
    p_value: float


def clusters(image_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Cluster [questions] int64 of each question: questions that share a picture, directly or through others, share one.

    A question without a picture is a cluster of its own.
    """
    parent: dict[int, int] = {}

    def find_root(image: int) -> int:
        while parent.setdefault(image, image) != image:
            parent[image] = image = parent[parent[image]]
        return image

    for images in image_ids:
        for image in images[1:]:
            parent[find_root(image)] = find_root(images[0])
    singleton_ids = iter(range(-1, -len(image_ids) - 1, -1))
    labels = [("picture", find_root(images[0])) if images else ("question", next(singleton_ids)) for images in image_ids]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def intervals(scores: np.ndarray, cluster_ids: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """Percentile interval of each column's mean: bootstrap over clusters (Efron & Tibshirani 1993, ch. 13).

    scores: [questions, columns]; groups: cluster of each question, 0..n-1. A column is a mean over questions, so a
    cluster counts by its questions. All columns see the same resamples.
    """
    sums, sizes = _cluster_sums(scores, cluster_ids)
    means = [(counts @ sums) / (counts @ sizes)[:, None] for counts in _bootstrap_counts(len(sizes), resamples, seed)]
    tail = 100 * SIGNIFICANCE_LEVEL / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def p_values(differences: np.ndarray, cluster_ids: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Two-sided p-value of each column's mean difference: randomisation test over clusters (Fisher 1935; Noreen 1989).

    If the two systems were alike, all their answers about a picture could as well be swapped: the sign of each cluster's
    sum is drawn anew. Unlike a bootstrap p-value it stays honest with a handful of pictures. The drawn case itself counts
    (Davison & Hinkley 1997, 4.11), so p is at least 1 / (resamples + 1). Columns of zeros have p = 1.
    """
    sums, _ = _cluster_sums(differences, cluster_ids)
    observed = np.abs(sums.sum(axis=0))
    num_extreme = np.zeros(sums.shape[1])
    for signs in _random_signs(len(sums), resamples, seed):
        # A little slack: the same sum in another order of addition must count as equal.
        num_extreme += (np.abs(signs @ sums) >= observed - 1e-9).sum(axis=0)
    return [float(count) for count in (num_extreme + 1) / (resamples + 1)]


def compare(a: np.ndarray, b: np.ndarray, cluster_ids: np.ndarray, resamples: int, seed: int) -> list[Difference]:
    """Column by column, a against b: scores [questions, columns] of the same questions in the same order.

    Raises UsageError when the two have different numbers of questions.
    """
    if a.shape != b.shape or len(a) != len(cluster_ids):
        raise UsageError(f"cannot compare scores of {len(a)} and {len(b)} questions: the question sets differ")
    differences = a - b
    ranges = intervals(differences, cluster_ids, resamples, seed)
    return [
        Difference(float(mean), interval, p)
        for mean, interval, p in zip(differences.mean(axis=0), ranges, p_values(differences, cluster_ids, resamples, seed), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class McNemar:
    """How many questions only a, and only b, got right, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """Exact McNemar test (McNemar 1947; binomial, two-sided) of scores 0 or 1 [questions] of the same questions.

    It takes each question for a draw of its own, also where several are about one picture.
    """
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    num_questions, term, total = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += term
        term = term * (num_questions - k) // (k + 1)
    # Whole numbers of any size: 2 ** n outgrows a float beyond a thousand questions.
    return McNemar(only_a, only_b, min(1.0, 2 * total / 2**num_questions))


def minimum_detectable_effect(differences: np.ndarray, cluster_ids: np.ndarray, comparisons: int) -> float | None:
    """The difference of means that this sample would show in four cases of five; None where it could show none at all.

    differences: [questions] a minus b. (z(1 - LEVEL / comparisons / 2) + z(.8)) times the standard error over clusters (Bloom
    1995: minimum detectable effect), at the level of the hardest step of Holm. Systems that hardly differ have a standard error
    near 0: it is never less than one question in so many pictures, all for the same side, as the test needs.
    """
    level = SIGNIFICANCE_LEVEL / max(1, comparisons)
    sums, sizes = _cluster_sums(differences[:, None], cluster_ids)
    num_clusters, num_questions = len(sizes), float(sizes.sum())
    min_clusters = math.ceil(math.log2(2 / level))
    if min_clusters > num_clusters:
        return None
    residuals = sums[:, 0] - differences.mean() * sizes
    standard_error = math.sqrt(float(residuals @ residuals) * num_clusters / (num_clusters - 1)) / num_questions
    normal = NormalDist()
    return max((normal.inv_cdf(1 - level / 2) + normal.inv_cdf(0.8)) * standard_error, min_clusters / num_questions)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the family-wise error stays at the level over all of them."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def verdict(difference: Difference, p_holm: float) -> Verdict:
    """Which one is better: shown only when the interval leaves 0 out and the adjusted p-value is at most LEVEL."""
    if p_holm > SIGNIFICANCE_LEVEL or difference.ci95.low <= 0.0 <= difference.ci95.high:
        return "not shown"
    return "a" if difference.difference > 0 else "b"


def min_resamples(resamples: int, comparisons: int) -> int:
    """At least `resamples`, and so many that the smallest possible p-value survives Holm over `comparisons`."""
    return max(resamples, round(5 * comparisons / SIGNIFICANCE_LEVEL))


def _cluster_sums(scores: np.ndarray, cluster_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums [clusters, columns] and numbers of questions [clusters] of each cluster."""
    num_questions = int(cluster_ids.max()) + 1
    sums = np.zeros((num_questions, scores.shape[1]))
    np.add.at(sums, cluster_ids, scores)
    return sums, np.bincount(cluster_ids, minlength=num_questions).astype(float)


def _bootstrap_counts(num_questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [block, n] of how often each of n clusters is drawn, `resamples` rows in all."""
    generator = np.random.default_rng([seed, 0])
    for rows in _block_sizes(num_questions, resamples):
        sampled = generator.integers(0, num_questions, size=(rows, num_questions)) + num_questions * np.arange(rows)[:, None]
        yield np.bincount(sampled.ravel(), minlength=rows * num_questions).reshape(rows, num_questions).astype(float)


def _random_signs(num_questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [block, n] of random signs -1, 1."""
    generator = np.random.default_rng([seed, 1])
    for rows in _block_sizes(num_questions, resamples):
        yield generator.integers(0, 2, size=(rows, num_questions)) * 2.0 - 1.0


def _block_sizes(num_questions: int, resamples: int) -> Iterator[int]:
    size = max(1, _MAX_BLOCK_SIZE // num_questions)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
