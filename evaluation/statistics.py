"""Tests of paired differences: randomisation test over images, McNemar's test, Holm correction, verdicts.

Questions about one image are not independent, so the image is the unit of resampling: its questions form one cluster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from dataset.connected_groups import connected_groups
from errors import UsageError
from evaluation.confidence_intervals import SIGNIFICANCE_LEVEL, Interval, cluster_sums, difference_intervals

_MAX_BLOCK_SIZE = 2_000_000  # random numbers generated at a time: 16 MB

Verdict = Literal["a", "b", "not shown"]


@dataclass(frozen=True)
class Difference:
    """Mean score of a minus mean score of b over the same questions, with interval and unadjusted p-value."""

    difference: float
    ci95: Interval
    p_value: float


@dataclass(frozen=True)
class TestedDifference(Difference):
    """One of several differences. p_holm: adjusted over all of them. verdict: which side is shown to be better."""

    __test__ = False  # not a test of pytest

    p_holm: float
    verdict: Verdict


def clusters(image_ids: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Cluster id [questions] int64 of each question: connected components of questions that share an image.

    A question without an image is a cluster of its own.
    """
    images = {image: len(image_ids) + i for i, image in enumerate(dict.fromkeys(image for own in image_ids for image in own))}
    pairs = np.array([(i, images[image]) for i, own in enumerate(image_ids) for image in own], dtype=np.int64)
    return connected_groups(len(image_ids) + len(images), pairs)[: len(image_ids)]


def p_values(differences: np.ndarray, cluster_ids: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Two-sided p-value of each column's mean difference: randomisation test over clusters (Fisher 1935; Noreen 1989).

    Under the null hypothesis the answers of both systems about an image are exchangeable, so the sign of each cluster's sum is
    flipped at random. It stays valid with few images. The observed case counts as one of the
    resamples (Davison & Hinkley 1997, 4.11), so p is at least 1 / (resamples + 1). Columns of zeros have p = 1.

    Args:
        differences: [questions, columns], a minus b
        cluster_ids: cluster of each question, 0..n-1
        resamples: number of random sign assignments
        seed: seed of the signs
    """
    sums, _, _ = cluster_sums(differences, cluster_ids)
    observed = np.abs(sums.sum(axis=0))
    num_extreme = np.zeros(sums.shape[1])
    for signs in _random_signs(len(sums), resamples, seed):
        # Tolerance: equal sums added in another order must count as equal.
        num_extreme += (np.abs(signs @ sums) >= observed - 1e-9).sum(axis=0)
    return [float(count) for count in (num_extreme + 1) / (resamples + 1)]


def compare(a: np.ndarray, b: np.ndarray, cluster_ids: np.ndarray, resamples: int, seed: int) -> list[Difference]:
    """Compare a with b column by column. Raises UsageError if the numbers of questions differ.

    Args:
        a: scores [questions, columns]
        b: scores [questions, columns] of the same questions in the same order
        cluster_ids: cluster of each question, 0..n-1
        resamples: number of random sign assignments of the randomisation test
        seed: seed of the signs
    """
    if a.shape != b.shape or len(a) != len(cluster_ids):
        raise UsageError(f"cannot compare scores of {len(a)} and {len(b)} questions: the question sets differ")
    differences = a - b
    ranges = difference_intervals(differences, cluster_ids)
    return [
        Difference(float(mean), interval, p)
        for mean, interval, p in zip(differences.mean(axis=0), ranges, p_values(differences, cluster_ids, resamples, seed), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class McNemar:
    """Numbers of questions that only a, and only b, answers correctly, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """Exact two-sided McNemar test (McNemar 1947) of scores 0 or 1 [questions] of the same questions.

    It treats questions as independent, even those about the same image.
    """
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return McNemar(only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), which control the family-wise error rate."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def verdict(difference: Difference, p_holm: float) -> Verdict:
    """Which side is better: "not shown" unless the interval excludes 0 and the adjusted p-value is at most SIGNIFICANCE_LEVEL."""
    if p_holm > SIGNIFICANCE_LEVEL or difference.ci95.low <= 0.0 <= difference.ci95.high:
        return "not shown"
    return "a" if difference.difference > 0 else "b"


def with_verdicts(differences: Sequence[Difference]) -> list[TestedDifference]:
    """The differences with p-values that are adjusted over all of them, and verdicts."""
    adjusted = holm([difference.p_value for difference in differences])
    return [TestedDifference(**vars(row), p_holm=p, verdict=verdict(row, p)) for row, p in zip(differences, adjusted, strict=True)]


def min_resamples(resamples: int, comparisons: int) -> int:
    """At least `resamples`, and enough that the smallest possible p-value can pass the Holm correction over `comparisons`."""
    return max(resamples, round(5 * comparisons / SIGNIFICANCE_LEVEL))


def _random_signs(num_clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [rows, clusters] of random signs -1 or 1, `resamples` rows in total."""
    generator = np.random.default_rng([seed, 1])
    size = max(1, _MAX_BLOCK_SIZE // num_clusters)
    for start in range(0, resamples, size):
        yield generator.integers(0, 2, size=(min(size, resamples - start), num_clusters)) * 2.0 - 1.0
