"""Differences over images and seeds: against scipy where it has the test, and against simulations of trainings that vary."""

import numpy as np
import pytest
from scipy import stats

from errors import UsageError
from evaluation.seed_variance import compare_seeds
from evaluation.statistics import with_verdicts

IMAGES, PER_IMAGE = 60, 3
CLUSTERS = np.repeat(np.arange(IMAGES), PER_IMAGE)


def answers(rng: np.random.Generator, difficulty: np.ndarray, seeds: int, seed_spread: float, shift: float = 0.0) -> np.ndarray:
    """Scores 0 or 1 [seeds, questions]: a probability made of the image, of the training's luck, and of what is better."""
    luck = rng.normal(0, seed_spread, (seeds, 1))
    probability: np.ndarray = stats.norm.cdf(np.repeat(difficulty, PER_IMAGE)[None] + luck + shift)
    scores: np.ndarray = (rng.random(probability.shape) < probability).astype(float)
    return scores


def simulate(runs: int, seeds: tuple[int, int], seed_spread: float, shift: float = 0.0) -> tuple[float, float]:
    """Share of simulated ablations in which a difference is shown, and in which the interval contains the true one."""
    rng, shown, covered = np.random.default_rng(0), 0, 0
    # The truth: mean over images (of this population) and over seeds.
    probit = stats.norm.cdf(np.array([0.0, shift]) / np.sqrt(1 + 0.7**2 + seed_spread**2))
    truth = float(probit[1] - probit[0])
    for _ in range(runs):
        difficulty = rng.normal(0, 0.7, IMAGES)
        a, b = (answers(rng, difficulty, n, seed_spread, s) for n, s in zip(seeds, (shift, 0.0), strict=True))
        difference = compare_seeds(a, b, CLUSTERS)
        shown += with_verdicts([difference])[0].verdict != "not shown"
        covered += difference.ci95.low <= truth <= difference.ci95.high
    return shown / runs, covered / runs


@pytest.mark.parametrize(("seeds", "spread"), [((3, 3), 0.0), ((3, 3), 0.15), ((3, 3), 0.5), ((2, 3), 0.3), ((2, 2), 0.3)])
def test_luck_of_the_seeds_is_rarely_taken_for_a_difference(seeds: tuple[int, int], spread: float) -> None:
    shown, covered = simulate(400, seeds, spread)
    # 0.05 and 0.95, give or take three standard errors; a wider interval is no harm.
    assert shown <= 0.083
    assert covered >= 0.917


def test_a_test_over_images_alone_would_take_luck_for_a_difference() -> None:
    rng, shown = np.random.default_rng(1), 0
    for _ in range(200):
        difficulty = rng.normal(0, 0.7, IMAGES)
        a, b = (answers(rng, difficulty, 3, 0.5) for _ in range(2))
        # One mean model of each side, as if no other seeds were possible.
        difference = compare_seeds(a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True), CLUSTERS)
        shown += with_verdicts([difference])[0].verdict != "not shown"
    assert shown / 200 > 0.3


def test_a_true_difference_is_found() -> None:
    shown, covered = simulate(200, (3, 3), 0.05, shift=0.8)
    assert shown > 0.8
    assert covered >= 0.9


def test_with_many_images_and_varying_seeds_it_is_welchs_t_test_of_the_seeds() -> None:
    # Both sides answer every image alike, so that nothing but the seeds' means differs.
    a = np.tile(np.array([[0.62], [0.70], [0.66]]), (1, 5000))
    b = np.tile(np.array([[0.50], [0.61], [0.52], [0.58]]), (1, 5000))
    difference = compare_seeds(a, b, np.arange(5000))
    welch = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    low, high = welch.confidence_interval()
    assert difference.p_value == pytest.approx(welch.pvalue, rel=0.02)
    assert difference.ci95 == pytest.approx((low, high), abs=2e-3)


def test_with_one_seed_a_side_it_is_the_paired_test_over_images() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((1, 2000)), rng.random((1, 2000))
    difference = compare_seeds(a, b, np.arange(2000))
    paired = stats.ttest_rel(a[0], b[0])
    assert difference.p_value == pytest.approx(paired.pvalue, rel=0.02)
    assert difference.difference == pytest.approx(float((a - b).mean()))


def test_sides_without_a_single_differing_answer_are_not_shown_to_differ() -> None:
    same = np.ones((3, 12))
    difference = compare_seeds(same, same, np.arange(12))
    assert difference.difference == 0 and difference.p_value == 1
    assert difference.ci95.low < 0 < difference.ci95.high


def test_a_single_image_shows_nothing_and_other_questions_are_refused() -> None:
    difference = compare_seeds(np.ones((3, 4)), np.zeros((3, 4)), np.zeros(4, dtype=int))
    assert difference.ci95 == (-1, 1) and difference.p_value == 1
    with pytest.raises(UsageError, match="scores of 4 and 5 questions"):
        compare_seeds(np.ones((3, 4)), np.ones((3, 5)), np.arange(4))
