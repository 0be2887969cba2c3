"""Fits that can be worked out by hand or checked against their definition."""

import math

import numpy as np
import pytest

from answering.rerank.logistic_regression import sigmoid
from evaluation.calibration.probability_fits import fit_logistic, group_k_fold, isotonic


def test_two_groups_have_the_log_odds_of_their_shares() -> None:
    x = np.array([[0.0]] * 10 + [[1.0]] * 10)
    right = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 6 + [0.0] * 4)
    model = fit_logistic(["x"], x, right, l2=1e-9)
    assert model.bias == pytest.approx(math.log(0.2 / 0.8), abs=1e-4)
    assert model.weights[0] == pytest.approx(math.log(0.6 / 0.4) - math.log(0.2 / 0.8), abs=1e-4)


def test_fractions_count_as_that_share_of_an_observation() -> None:
    halves = fit_logistic(["x"], np.array([[0.0], [1.0]]), np.array([0.3, 0.9]), l2=1e-9)
    assert halves.probabilities({"x": [0.0, 1.0]}) == pytest.approx([0.3, 0.9], abs=1e-4)


def test_the_penalised_gradient_is_zero_at_the_fit() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) * [1.0, 50.0, 0.01] + [0.0, 7.0, 0.0]
    right = (rng.random(300) < sigmoid(x[:, 0] - 0.02 * x[:, 1])).astype(float)
    model = fit_logistic(["a", "b", "c"], x, right, l2=2.0)
    p = np.array(model.probabilities(dict(zip("abc", x.T.tolist(), strict=True))))
    scaled, weights = (x - x.mean(0)) / x.std(0), np.array(model.weights) * x.std(0)
    assert scaled.T @ (p - right) + 2.0 * weights == pytest.approx(np.zeros(3), abs=1e-6)
    assert (p - right).sum() == pytest.approx(0.0, abs=1e-3)


def test_classes_that_are_apart_and_features_that_never_vary_are_no_trouble() -> None:
    x = np.array([[0.0, 5.0]] * 20 + [[1.0, 5.0]] * 20)
    model = fit_logistic(["x", "same"], x, np.repeat([0.0, 1.0], 20))
    assert model.weights[1] == 0.0
    assert np.isfinite([*model.weights, model.bias]).all()
    low, high = model.probabilities({"x": [0.0, 1.0], "same": [5.0, 5.0]})
    assert low < 0.2
    assert high > 0.8
    assert fit_logistic(["x"], np.ones((4, 1)), np.zeros(4)).probabilities({"x": [1.0]})[0] < 0.05


def test_isotonic_regression_pools_what_falls() -> None:
    steps = isotonic(np.array([0.1, 0.2, 0.3, 0.4, 0.4]), np.array([0.0, 1.0, 0.5, 0.6, 1.0]))
    # .2 and .3 are pooled to .75; the two at .4 share .8.
    assert steps.starts == (0.1, 0.2, 0.4)
    assert steps.values == pytest.approx((0.0, 0.75, 0.8))
    falling = isotonic(np.array([0.1, 0.5, 0.9]), np.array([1.0, 0.5, 0.0]))
    assert (falling.starts, falling.values) == ((0.1,), (0.5,))


def test_no_image_stands_on_both_sides_of_a_fold_and_each_is_left_out_once() -> None:
    groups = np.repeat(np.arange(13), 3)
    left_out = np.zeros(len(groups))
    for fitted, left in group_k_fold(groups, 0):
        assert not set(groups[fitted]) & set(groups[left])
        assert (fitted ^ left).all()
        left_out += left
    assert (left_out == 1).all()
    assert list(group_k_fold(np.zeros(5), 0)) == []
    assert len(list(group_k_fold(np.array([0, 1, 1]), 0))) == 2
