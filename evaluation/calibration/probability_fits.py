"""Fits on the validation split: logistic regression, isotonic regression, and grouped cross-validation folds."""

from collections.abc import Iterator, Sequence

import numpy as np

from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel, sigmoid

NUM_FOLDS = 5
"""Largest number of cross-validation folds."""
_MAX_ITERATIONS, _TOLERANCE = 50, 1e-9


def fit_logistic(names: Sequence[str], features: np.ndarray, targets: np.ndarray, l2: float = 1.0) -> LogisticModel:
    """Logistic regression with an L2 penalty, by Newton's method (le Cessie & van Houwelingen 1992), on standardised features.

    The bias is not penalised. A constant feature gets weight 0.

    Args:
        names: feature names
        features: [n, len(names)]
        targets: [n] in 0..1; a fraction counts as that share of a positive observation
        l2: factor of half the sum of squared weights
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > _TOLERANCE, std, np.inf)
    x = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    ridge = np.append(np.full(len(names), l2), 1e-6)
    weights = np.zeros(x.shape[1])
    for _ in range(_MAX_ITERATIONS):
        p = sigmoid(x @ weights)
        gradient = x.T @ (p - targets) + ridge * weights
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge), gradient)
        # Limit the step: Newton overshoots where the classes are almost separable.
        weights -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), _TOLERANCE))
        if np.abs(step).max() < _TOLERANCE:
            break
    unscaled = weights[:-1] / scale
    return LogisticModel(tuple(names), tuple(unscaled.tolist()), float(weights[-1] - unscaled @ mean))


def isotonic(scores: np.ndarray, targets: np.ndarray) -> IsotonicSteps:
    """Isotonic regression, least squares, by pooling adjacent violators (Ayer et al. 1955). Equal scores share a step."""
    starts, inverse = np.unique(scores, return_inverse=True)
    sizes = np.bincount(inverse).astype(float)
    means = np.bincount(inverse, weights=targets) / sizes
    blocks: list[tuple[float, float, float]] = []
    for start, mean, size in zip(starts.tolist(), means.tolist(), sizes.tolist(), strict=True):
        blocks.append((start, mean, size))
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            (first, low, n), (_, high, m) = blocks[-2:]
            blocks[-2:] = [(first, (low * n + high * m) / (n + m), n + m)]
    return IsotonicSteps(tuple(start for start, _, _ in blocks), tuple(mean for _, mean, _ in blocks))


def group_k_fold(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train mask, held-out mask), each [rows] bool, for at most NUM_FOLDS folds; a group is never split.

    Yields nothing if there are fewer than two groups. Groups are the clusters of questions that share an image.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return
    num_folds = min(NUM_FOLDS, len(names))
    fold_index = (np.random.default_rng([seed, 3]).permutation(len(names)) % num_folds)[inverse]
    for i in range(num_folds):
        yield fold_index != i, fold_index == i
