"""Fits against values computed by hand or against their definition."""

import math

import numpy as np
import pytest

from answering.rerank.logistic_regression import sigmoid
from evaluation.calibration.probability_fits import fit_logistic, group_k_fold, isotonic


def test_a_binary_feature_gets_the_log_odds_of_both_groups() -> None:
    x = np.array([[0.0]] * 10 + [[1.0]] * 10)
    targets = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 6 + [0.0] * 4)
    model = fit_logistic(["x"], x, targets, l2=1e-9)
    assert model.bias == pytest.approx(math.log(0.2 / 0.8), abs=1e-4)
    assert model.weights[0] == pytest.approx(math.log(0.6 / 0.4) - math.log(0.2 / 0.8), abs=1e-4)


def test_a_fractional_target_counts_as_that_share_of_an_observation() -> None:
    model = fit_logistic(["x"], np.array([[0.0], [1.0]]), np.array([0.3, 0.9]), l2=1e-9)
    assert model.probabilities({"x": [0.0, 1.0]}) == pytest.approx([0.3, 0.9], abs=1e-4)


def test_the_penalised_gradient_is_zero_at_the_fit() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) * [1.0, 50.0, 0.01] + [0.0, 7.0, 0.0]
    targets = (rng.random(300) < sigmoid(x[:, 0] - 0.02 * x[:, 1])).astype(float)
    model = fit_logistic(["a", "b", "c"], x, targets, l2=2.0)
    p = np.array(model.probabilities(dict(zip("abc", x.T.tolist(), strict=True))))
    scaled, weights = (x - x.mean(0)) / x.std(0), np.array(model.weights) * x.std(0)
    assert scaled.T @ (p - targets) + 2.0 * weights == pytest.approx(np.zeros(3), abs=1e-6)
    assert (p - targets).sum() == pytest.approx(0.0, abs=1e-3)


def test_separable_classes_and_constant_features_give_finite_weights() -> None:
    x = np.array([[0.0, 5.0]] * 20 + [[1.0, 5.0]] * 20)
    model = fit_logistic(["x", "same"], x, np.repeat([0.0, 1.0], 20))
    assert model.weights[1] == 0.0
    assert np.isfinite([*model.weights, model.bias]).all()
    low, high = model.probabilities({"x": [0.0, 1.0], "same": [5.0, 5.0]})
    assert low < 0.2
    assert high > 0.8
    assert fit_logistic(["x"], np.ones((4, 1)), np.zeros(4)).probabilities({"x": [1.0]})[0] < 0.05


def test_isotonic_regression_pools_decreasing_values() -> None:
    steps = isotonic(np.array([0.1, 0.2, 0.3, 0.4, 0.4]), np.array([0.0, 1.0, 0.5, 0.6, 1.0]))
    # The values at .2 and .3 are pooled to .75; the two at .4 average .8.
    assert steps.starts == (0.1, 0.2, 0.4)
    assert steps.values == pytest.approx((0.0, 0.75, 0.8))
    decreasing = isotonic(np.array([0.1, 0.5, 0.9]), np.array([1.0, 0.5, 0.0]))
    assert (decreasing.starts, decreasing.values) == ((0.1,), (0.5,))


def test_no_image_is_on_both_sides_of_a_fold_and_each_is_held_out_once() -> None:
    groups = np.repeat(np.arange(13), 3)
    times_held_out = np.zeros(len(groups))
    for train_mask, held_out_mask in group_k_fold(groups, 0):
        assert not set(groups[train_mask]) & set(groups[held_out_mask])
        assert (train_mask ^ held_out_mask).all()
        times_held_out += held_out_mask
    assert (times_held_out == 1).all()
    assert list(group_k_fold(np.zeros(5), 0)) == []
    assert len(list(group_k_fold(np.array([0, 1, 1]), 0))) == 2
