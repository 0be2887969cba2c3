"""Fits on the validation split: logistic regression, isotonic regression, and grouped cross-validation folds."""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel

NUM_FOLDS = 5
"""Largest number of cross-validation folds."""
_MAX_ITERATIONS, _TOLERANCE = 200, 1e-9


def fit_logistic(names: Sequence[str], features: np.ndarray, targets: np.ndarray, l2: float = 1.0) -> LogisticModel:
    """Logistic regression with an L2 penalty on standardised features (scikit-learn's). A constant feature gets weight 0.

    Args:
        names: feature names
        features: [n, len(names)]
        targets: [n] in 0..1; a fraction t counts as a positive observation of weight t and a negative one of weight 1 - t
        l2: factor of half the sum of squared weights; the bias is not penalised
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > _TOLERANCE, std, np.inf)
    x = (features - mean) / scale
    model = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    model.fit(np.concatenate([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([targets, 1 - targets]))
    weights = model.coef_[0] / scale
    return LogisticModel(tuple(names), tuple(weights.tolist()), float(model.intercept_[0] - weights @ mean))


def isotonic(scores: np.ndarray, targets: np.ndarray) -> IsotonicSteps:
    """Isotonic regression, least squares (scikit-learn's), as steps: equal scores share one, and between two scores the lower holds."""
    starts = np.unique(scores)
    values = IsotonicRegression().fit(scores, targets).predict(starts)
    rises = np.append(True, np.diff(values) > 0)
    return IsotonicSteps(tuple(starts[rises].tolist()), tuple(values[rises].tolist()))


def group_k_fold(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train mask, held-out mask), each [rows] bool, for at most NUM_FOLDS folds; a group is never split.

    Yields nothing if there are fewer than two groups. Groups are the clusters of questions that share an image. A seed shuffles them, as
    in scikit-learn's GroupKFold, which would assign others and so change every figure that was published with these.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return
    num_folds = min(NUM_FOLDS, len(names))
    fold_index = (np.random.default_rng([seed, 3]).permutation(len(names)) % num_folds)[inverse]
    for i in range(num_folds):
        yield fold_index != i, fold_index == i
