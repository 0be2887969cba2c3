"""Differences between two configurations that were each trained with several seeds: over images and over seeds.

A difference that holds for three trained models of each side need not hold for a fourth: what a seed decides varies between trainings,
as what an image asks varies between images. Both sides answer the same questions, so images are paired; a seed of one side has nothing to
do with that of the other, and their numbers may differ. With a seeds of one side and b of the other, the variance of the difference is

    variance over images of the mean over seeds + variance between the seeds' means / number of seeds, for each side,

and its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2). As in Clark's min F' (1973, J. Verbal Learning and Verbal
Behavior 12, "The language-as-fixed-effect fallacy"), the noise of single answers is in each of the terms, so that the interval is rather
too wide than too narrow.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

from errors import UsageError
from evaluation.confidence_intervals import SIGNIFICANCE_LEVEL, Interval, adjusted_difference, cluster_sums
from evaluation.statistics import Difference


def compare_seeds(a: np.ndarray, b: np.ndarray, cluster_ids: np.ndarray) -> Difference:
    """Mean score of a minus that of b, with the interval and the p-value of Student's t over images and seeds.

    With one seed on a side, nothing is known of its variance, and the figures hold for these trained models alone.
    From a single cluster nothing follows: -1..1 and p = 1.

    Args:
        a: scores [seeds of a, questions], 0..1
        b: scores [seeds of b, questions] of the same questions in the same order
        cluster_ids: cluster of each question, 0..n-1; questions about one image are one cluster

    Raises:
        UsageError: the numbers of questions differ.
    """
    if a.shape[1] != b.shape[1] or a.shape[1] != len(cluster_ids):
        raise UsageError(f"cannot compare scores of {a.shape[1]} and {b.shape[1]} questions: the question sets differ")
    difference = (a.mean(axis=0) - b.mean(axis=0))[:, None]
    sums, sizes, squares = cluster_sums(difference, cluster_ids)
    if len(sizes) < 2:
        return Difference(float(difference.mean()), Interval(-1.0, 1.0), 1.0)
    mean, image_variance = (float(values[0]) for values in adjusted_difference(sums.T, sizes[None], squares.T))
    variances = [(image_variance, len(sizes) - 1), *_seed_variances((a, b))]
    total = sum(variance for variance, _ in variances)
    degrees = total**2 / sum(variance**2 / freedom for variance, freedom in variances)
    half = float(student_t.ppf(1 - SIGNIFICANCE_LEVEL / 2, degrees)) * total**0.5
    p = 2 * float(student_t.sf(abs(mean) / total**0.5, degrees))
    return Difference(float(difference.mean()), Interval(max(mean - half, -1.0), min(mean + half, 1.0)), p)


def _seed_variances(sides: Sequence[np.ndarray]) -> list[tuple[float, int]]:
    """Variance of each side's mean over its seeds, and its degrees of freedom; none for a side with one seed."""
    means = [scores.mean(axis=1) for scores in sides]
    return [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in means if len(values) > 1]
