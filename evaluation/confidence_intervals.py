"""95 % confidence intervals of means and of paired differences of scores in 0..1, from few images on.

Questions about one image are not independent, so standard errors are those of a jackknife that leaves out one cluster of questions at a
time, and quantiles are those of Student's t with clusters - 1 degrees of freedom (CV3 in MacKinnon, Nielsen & Webb 2023, J. Econometrics
232, "Cluster-robust inference"). A percentile bootstrap covers 85 to 90 % with 6 to 10 clusters.

Shapes: G clusters, R rows that are computed at once.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

SIGNIFICANCE_LEVEL = 0.05
"""Largest Holm-adjusted p-value at which a difference counts as shown; intervals cover 1 - SIGNIFICANCE_LEVEL."""
MIN_CLUSTERS = 6
"""Smallest number of clusters for which the coverage of the intervals was simulated; with fewer, no difference can be shown either."""

_AGREEING = 1 / 3
"""Clusters of equal answers that are added where the agreement within clusters is estimated for a difference."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def mean_intervals(scores: np.ndarray, cluster_ids: np.ndarray) -> list[Interval]:
    """Interval of each column's mean over questions; a cluster weighs as much as it has questions.

    Wilson's score interval with the effective sample size p (1 - p) / variance, at most the number of questions (Korn & Graubard 1998,
    Survey Methodology 24; Franco et al. 2019, J. Survey Statistics and Methodology 7). Where all scores are 0, or all are 1, each cluster
    counts as one observation. From a single cluster nothing follows: 0..1.

    Args:
        scores: [questions, columns], 0..1
        cluster_ids: cluster of each question, 0..G-1
    """
    sums, sizes, _ = cluster_sums(scores, cluster_ids)
    num_clusters, num_questions = len(sizes), float(sizes.sum())
    if num_clusters < 2:
        return [Interval(0.0, 1.0)] * scores.shape[1]
    mean, variance = _jackknife(sums.T, sizes[None])
    spread, mean_size = mean * (1 - mean), num_questions / num_clusters
    # Near 0 and 1 few clusters differ, and whether their answers agree is hardly known: one cluster more is taken to agree. Clusters
    # whose answers agree throughout are worth about as many questions as there are clusters, and not less for that.
    agreeing = mean_size * (mean_size - 1) * np.maximum(mean, 1 - mean) ** 2 / num_questions**2
    with np.errstate(divide="ignore", invalid="ignore"):
        at_least = np.minimum(spread / variance, num_questions**2 / float(sizes @ sizes) - 1)
        size = np.minimum(np.maximum(spread / (variance + agreeing), at_least), num_questions)
    size = np.where(spread > 1e-12, size, num_clusters)
    t = student_t(1 - SIGNIFICANCE_LEVEL / 2, num_clusters - 1)
    center = (mean + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * np.sqrt(spread / size + t**2 / (4 * size**2))
    return [Interval(max(0.0, a), min(1.0, b)) for a, b in zip((center - half).tolist(), (center + half).tolist(), strict=True)]


def difference_intervals(differences: np.ndarray, cluster_ids: np.ndarray) -> list[Interval]:
    """Interval of each column's mean difference, of differences [questions, columns] in -1..1; see `difference_bounds`."""
    sums, sizes, squares = cluster_sums(differences, cluster_ids)
    low, high = difference_bounds(sums.T, np.broadcast_to(sizes, sums.T.shape), squares.T)
    return [Interval(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def difference_bounds(sums: np.ndarray, sizes: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [R] of the intervals of mean differences. Arguments as of `adjusted_difference`."""
    rows, num_clusters = sums.shape
    if num_clusters < 2:
        return np.full(rows, -1.0), np.full(rows, 1.0)
    mean, variance = adjusted_difference(sums, sizes, squares)
    half = student_t(1 - SIGNIFICANCE_LEVEL / 2, num_clusters - 1) * np.sqrt(variance)
    return np.maximum(mean - half, -1.0), np.minimum(mean + half, 1.0)


def adjusted_difference(sums: np.ndarray, sizes: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean difference [R] and its variance [R] over at least two clusters.

    The adjusted Wald interval for paired proportions (Bonett & Price 2012, J. Educational and Behavioral Statistics 37): one observation
    in favour of each side is added, so that the interval has a width even where hardly any answers differ. Between clusters the
    observation is as large as the answers within a cluster agree: one question if they are independent, a whole cluster if they are equal;
    a third of a cluster more is taken to agree, which keeps the coverage where few answers differ.

    Args:
        sums: sum of the differences of each cluster [R, G]
        sizes: number of its questions [R, G]
        squares: sum of the squared differences [R, G]
    """
    mean_size, total_squares = sizes.mean(axis=1), squares.sum(axis=1)
    unit = ((sums**2).sum(axis=1) + _AGREEING * mean_size**2) / (total_squares + _AGREEING * mean_size)
    unit = np.clip(unit, 1.0, np.maximum(1.0, mean_size))[:, None]
    return _jackknife(np.hstack([sums, unit, -unit]), np.hstack([sizes, unit, unit]))


def cluster_sums(scores: np.ndarray, cluster_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of scores [G, columns], number of questions [G], and sum of squared scores [G, columns] of each cluster."""
    num_clusters = int(cluster_ids.max()) + 1
    sums, squares = np.zeros((num_clusters, scores.shape[1])), np.zeros((num_clusters, scores.shape[1]))
    np.add.at(sums, cluster_ids, scores)
    np.add.at(squares, cluster_ids, scores**2)
    return sums, np.bincount(cluster_ids, minlength=num_clusters).astype(float), squares


def _jackknife(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over questions [R] and its jackknife variance [R], leaving out one cluster at a time. sums, sizes: [R, G] or [1, G]."""
    total, count = sums.sum(axis=1, keepdims=True), sizes.sum(axis=1, keepdims=True)
    mean = total / count
    without_one = (total - sums) / (count - sizes)
    num_clusters = sums.shape[1]
    return mean[:, 0], (num_clusters - 1) / num_clusters * ((without_one - mean) ** 2).sum(axis=1)


@lru_cache(maxsize=256)
def student_t(probability: float, degrees: int) -> float:
    """Quantile, for a probability above .5, of Student's t distribution with a whole number of degrees of freedom.

    By bisection on the distribution function; beyond 1,000 degrees by the first term of its expansion around the normal distribution
    (Abramowitz & Stegun 1964, 26.7.5), whose error is below 1e-5 there.
    """
    if degrees > 1000:
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * degrees)
    low, high = 0.0, 1.0
    while _student_t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < probability else (low, middle)
    return high


def _student_t_cdf(t: float, degrees: int) -> float:
    """Distribution function for t >= 0: the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    odd = degrees % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cosine_squared * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + within / 2
