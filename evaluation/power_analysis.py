"""The smallest true difference between two systems that an evaluation finds with a probability of 80 %.

A difference is taken to arise as rerankers and training cause it: the score of single questions rises by one, on top of the differences
either way that the two systems have anyway. With many differing clusters a normal approximation is enough; with few, the runs are
simulated and put to the same test and interval as real answers.

Shapes: G clusters, R simulated runs.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evaluation.confidence_intervals import SIGNIFICANCE_LEVEL, cluster_sums, difference_bounds, student_t

POWER = 0.8
"""Probability with which a difference of the reported size is found."""
_AIM = 0.83
"""Power that the simulation looks for: somewhat more than POWER, because the spread of the noise is itself only estimated."""
MANY_CLUSTERS = 200
"""From this number of differing clusters on, the normal approximation is used."""
_RUNS, _FLIPS, _SPARE_COLUMNS, _MAX_SIMULATED_CLUSTERS, _HALVINGS = 500, 2000, 50, 1000, 8


@dataclass(frozen=True, slots=True)
class _Sample:
    """Clusters [G] of an evaluation without the difference of its means.

    noise: what remains of each cluster's sum of differences; 0 for a cluster on which the systems agree. sizes: its questions. squares: the
    sum of its squared differences.
    """

    noise: np.ndarray
    sizes: np.ndarray
    squares: np.ndarray

    @property
    def differing(self) -> np.ndarray:
        """[G] bool, whether the systems differ on some question of the cluster."""
        return np.asarray(self.squares > 0)


def minimum_detectable_effect(differences: np.ndarray, cluster_ids: np.ndarray, comparisons: int) -> float | None:
    """Smallest true difference of means that is shown with a probability of 80 % (Bloom 1995); None where the images are too few for any.

    Args:
        differences: [questions], a minus b, -1..1
        cluster_ids: cluster of each question, 0..G-1
        comparisons: number of comparisons that Holm corrects for; the strictest step is counted with
    """
    level = SIGNIFICANCE_LEVEL / max(1, comparisons)
    sample = _without_mean(differences, cluster_ids)
    num_clusters = len(sample.sizes)
    # Even if all clusters favour one side, the randomisation test's p-value is 2 / 2 ** G.
    if 2.0 ** (1 - num_clusters) > level:
        return None
    effect = _normal_approximation(sample, level)
    if min(num_clusters, int(sample.differing.sum()) + effect * sample.sizes.sum()) >= MANY_CLUSTERS:
        return effect
    low, high = effect / 4, min(1.0, 8 * effect)
    if _simulated_power(sample, high, level) < _AIM:
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _simulated_power(sample, middle, level) < _AIM else (low, middle)
    return high


def _without_mean(differences: np.ndarray, cluster_ids: np.ndarray) -> _Sample:
    """The sample with the mean difference of its differing clusters removed, so that gains on few questions do not count as noise."""
    sums, sizes, squares = (values.reshape(-1) for values in cluster_sums(differences[:, None], cluster_ids))
    differing = squares > 0
    number = int(differing.sum())
    noise = np.zeros(len(sizes))
    if number > 1:
        mean = sums[differing].sum() / sizes[differing].sum()
        # One degree of freedom for the mean, and one more because an estimated spread is too small more often than too large.
        noise[differing] = (sums[differing] - mean * sizes[differing]) * math.sqrt((number + 1) / (number - 1))
    return _Sample(noise, sizes, squares)


def _normal_approximation(sample: _Sample, level: float) -> float:
    """The effect at which the normal approximation of the randomisation test has the power, at most 1."""
    t, z = student_t(1 - level / 2, len(sample.sizes) - 1), NormalDist().inv_cdf(POWER)
    noise, num_questions = float(sample.noise @ sample.noise), float(sample.sizes.sum())
    effect = 0.0
    for _ in range(100):
        variance = noise + num_questions * effect * (1 - effect)
        shifted = variance + effect**2 * float(sample.sizes @ sample.sizes)
        # The test's own spread contains the difference that it tests; a single question is the least that can be found.
        needed = max(1.0, t * math.sqrt(shifted) + z * math.sqrt(variance)) / num_questions
        effect = min(1.0, needed)
    return effect


def _simulated_power(sample: _Sample, effect: float, level: float) -> float:
    """Share of simulated runs with a true difference `effect` in which it is shown."""
    generator = np.random.default_rng(0)
    sums, sizes, squares = _simulated_runs(sample, effect, generator)
    low, _ = difference_bounds(sums, sizes, squares)
    return float(np.mean((low > 0) & (_sign_flip_p_values(sums, generator) <= level)))


def _simulated_runs(sample: _Sample, effect: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, sizes and sums of squares [R, clusters] of runs: clusters sampled with replacement, noise of random sign, and gains.

    More than _MAX_SIMULATED_CLUSTERS clusters are represented by as many, with the same expected numbers of differing clusters and gains.
    """
    num_clusters, differing = len(sample.sizes), np.flatnonzero(sample.differing)
    agreeing = np.flatnonzero(~sample.differing)
    columns = min(num_clusters, _MAX_SIMULATED_CLUSTERS)
    picked = generator.integers(0, max(1, len(agreeing)), (_RUNS, columns))
    picked = agreeing[picked] if len(agreeing) else picked
    if len(differing):
        is_differing = generator.random((_RUNS, columns)) < (len(differing) / columns if len(agreeing) else 1.0)
        picked = np.where(is_differing, differing[generator.integers(0, len(differing), (_RUNS, columns))], picked)
    sizes = sample.sizes[picked]
    gains = generator.binomial(sizes.astype(int), min(1.0, effect * num_clusters / columns))
    signs = generator.integers(0, 2, (_RUNS, columns)) * 2 - 1
    return sample.noise[picked] * signs + gains, sizes, sample.squares[picked] + gains


def _sign_flip_p_values(sums: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Two-sided p-values [R] of the randomisation test over clusters, as `statistics.p_values` estimates them.

    Clusters of sum 0 do not matter and most are left out. The others stand in random columns, so that the runs do not share their signs.
    """
    width = min(sums.shape[1], int((sums != 0).sum(axis=1).max()) + _SPARE_COLUMNS)
    order = np.argsort(sums == 0, axis=1, kind="stable")[:, :width]
    packed = generator.permuted(np.take_along_axis(sums, order, axis=1), axis=1).astype(np.float32)
    signs = (generator.integers(0, 2, (_FLIPS, width)) * 2 - 1).astype(np.float32)
    extreme = (np.abs(signs @ packed.T) >= np.abs(packed.sum(axis=1)) - 1e-3).sum(axis=0)
    return np.asarray((extreme + 1) / (_FLIPS + 1))
