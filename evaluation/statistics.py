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

LEVEL = 0.05
"""Largest adjusted p-value of a verdict; the intervals cover 1 - LEVEL."""
_BLOCK = 2_000_000  # random numbers drawn at a time: 16 MB

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

    def root(image: int) -> int:
        while parent.setdefault(image, image) != image:
            parent[image] = image = parent[parent[image]]
        return image

    for images in image_ids:
        for image in images[1:]:
            parent[root(image)] = root(images[0])
    alone = iter(range(-1, -len(image_ids) - 1, -1))
    labels = [("picture", root(images[0])) if images else ("question", next(alone)) for images in image_ids]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def intervals(scores: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> list[Interval]:
    """Percentile interval of each column's mean: bootstrap over clusters (Efron & Tibshirani 1993, ch. 13).

    scores: [questions, columns]; groups: cluster of each question, 0..n-1. A column is a mean over questions, so a
    cluster counts by its questions. All columns see the same resamples.
    """
    sums, sizes = _totals(scores, groups)
    means = [(counts @ sums) / (counts @ sizes)[:, None] for counts in _resamples(len(sizes), resamples, seed)]
    tail = 100 * LEVEL / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def p_values(differences: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Two-sided p-value of each column's mean difference: randomisation test over clusters (Fisher 1935; Noreen 1989).

    If the two systems were alike, all their answers about a picture could as well be swapped: the sign of each cluster's
    sum is drawn anew. Unlike a bootstrap p-value it stays honest with a handful of pictures. The drawn case itself counts
    (Davison & Hinkley 1997, 4.11), so p is at least 1 / (resamples + 1). Columns of zeros have p = 1.
    """
    sums, _ = _totals(differences, groups)
    observed = np.abs(sums.sum(axis=0))
    exceeded = np.zeros(sums.shape[1])
    for signs in _signs(len(sums), resamples, seed):
        # A little slack: the same sum in another order of addition must count as equal.
        exceeded += (np.abs(signs @ sums) >= observed - 1e-9).sum(axis=0)
    return [float(count) for count in (exceeded + 1) / (resamples + 1)]


def compare(a: np.ndarray, b: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> list[Difference]:
    """Column by column, a against b: scores [questions, columns] of the same questions in the same order.

    Raises UsageError when the two have different numbers of questions.
    """
    if a.shape != b.shape or len(a) != len(groups):
        raise UsageError(f"cannot compare scores of {len(a)} and {len(b)} questions: the question sets differ")
    differences = a - b
    ranges = intervals(differences, groups, resamples, seed)
    return [
        Difference(float(mean), interval, p)
        for mean, interval, p in zip(differences.mean(axis=0), ranges, p_values(differences, groups, resamples, seed), strict=True)
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
    n, term, total = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        total += term
        term = term * (n - k) // (k + 1)
    # Whole numbers of any size: 2 ** n outgrows a float beyond a thousand questions.
    return McNemar(only_a, only_b, min(1.0, 2 * total / 2**n))


def smallest_shown(differences: np.ndarray, groups: np.ndarray, comparisons: int) -> float | None:
    """The difference of means that this sample would show in four cases of five; None where it could show none at all.

    differences: [questions] a minus b. (z(1 - LEVEL / comparisons / 2) + z(.8)) times the standard error over clusters (Bloom
    1995: minimum detectable effect), at the level of the hardest step of Holm. Systems that hardly differ have a standard error
    near 0: it is never less than one question in so many pictures, all for the same side, as the test needs.
    """
    level = LEVEL / max(1, comparisons)
    sums, sizes = _totals(differences[:, None], groups)
    pictures, n = len(sizes), float(sizes.sum())
    needed = math.ceil(math.log2(2 / level))
    if needed > pictures:
        return None
    residuals = sums[:, 0] - differences.mean() * sizes
    error = math.sqrt(float(residuals @ residuals) * pictures / (pictures - 1)) / n
    normal = NormalDist()
    return max((normal.inv_cdf(1 - level / 2) + normal.inv_cdf(0.8)) * error, needed / n)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the family-wise error stays at the level over all of them."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def verdict(difference: Difference, p_holm: float) -> Verdict:
    """Which one is better: shown only when the interval leaves 0 out and the adjusted p-value is at most LEVEL."""
    if p_holm > LEVEL or difference.ci95.low <= 0.0 <= difference.ci95.high:
        return "not shown"
    return "a" if difference.difference > 0 else "b"


def enough_resamples(resamples: int, comparisons: int) -> int:
    """At least `resamples`, and so many that the smallest possible p-value survives Holm over `comparisons`."""
    return max(resamples, round(5 * comparisons / LEVEL))


def _totals(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums [clusters, columns] and numbers of questions [clusters] of each cluster."""
    n = int(groups.max()) + 1
    sums = np.zeros((n, scores.shape[1]))
    np.add.at(sums, groups, scores)
    return sums, np.bincount(groups, minlength=n).astype(float)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [block, n] of how often each of n clusters is drawn, `resamples` rows in all."""
    generator = np.random.default_rng([seed, 0])
    for rows in _blocks(n, resamples):
        drawn = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _signs(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [block, n] of random signs -1, 1."""
    generator = np.random.default_rng([seed, 1])
    for rows in _blocks(n, resamples):
        yield generator.integers(0, 2, size=(rows, n)) * 2.0 - 1.0


def _blocks(n: int, resamples: int) -> Iterator[int]:
    size = max(1, _BLOCK // n)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
