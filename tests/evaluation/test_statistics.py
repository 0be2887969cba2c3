"""P-values and verdicts on known and constructed cases."""

import numpy as np
import pytest

from errors import UsageError
from evaluation.confidence_intervals import Interval
from evaluation.statistics import Difference, McNemar, clusters, compare, holm, mcnemar, min_resamples, p_values, verdict


def column(values: object) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


def test_questions_that_share_an_image_form_one_cluster() -> None:
    assert clusters([(1,), (2,), (1,), (), (3, 2), (), (4,)]).tolist() == [0, 1, 0, 2, 1, 3, 4]


def test_clusters_are_joined_through_questions_about_several_images() -> None:
    assert clusters([(1,), (2,), (3,), (1, 2), (2, 3)]).tolist() == [0] * 5


def test_an_image_weighs_as_much_as_it_has_questions() -> None:
    scores, groups = column([1, 1, 1, 0]), np.array([0, 0, 0, 1])
    difference = compare(scores, np.zeros_like(scores), groups, 500, seed=1)[0]
    assert difference.difference == 0.75


def test_the_p_value_of_five_images_that_all_agree_is_that_of_the_sign_test() -> None:
    (p,) = p_values(column(np.ones(5)), np.arange(5), 20_000, seed=0)
    assert p == pytest.approx(2 / 2**5, abs=0.005)


def test_a_single_image_cannot_show_a_difference() -> None:
    (difference,) = compare(column(np.ones(8)), column(np.zeros(8)), np.zeros(8, dtype=int), 500, seed=0)
    assert difference.p_value == 1.0
    assert verdict(difference, difference.p_value) == "not shown"


def test_equal_systems_have_no_difference() -> None:
    scores = column(np.random.default_rng(0).random(300))
    (difference,) = compare(scores, scores.copy(), np.arange(300), 500, seed=0)
    assert (difference.difference, difference.p_value) == (0.0, 1.0)
    assert verdict(difference, 1.0) == "not shown"


def planted(gain: float) -> Difference:
    """1,000 questions; b is right on 60 %, a on `gain` more; another tenth of the answers differs at random."""
    generator = np.random.default_rng(3)
    b = generator.random(1000) < 0.6
    noise = generator.permutation(1000)[:100]
    a = b.copy()
    a[noise[:50]], a[noise[50:]] = True, False
    b[noise[:50]], b[noise[50:]] = False, True
    wrong = np.flatnonzero(~a & ~b)
    a[wrong[: round(gain * 1000)]] = True
    return compare(column(a), column(b), np.arange(1000), 2000, seed=0)[0]


def test_a_gain_of_ten_points_is_shown() -> None:
    difference = planted(0.1)
    assert difference.difference == pytest.approx(0.1)
    assert verdict(difference, difference.p_value) == "a"


def test_a_gain_of_a_fifth_of_a_point_is_not_shown() -> None:
    difference = planted(0.002)
    assert difference.difference == pytest.approx(0.002)
    assert verdict(difference, difference.p_value) == "not shown"


def test_a_verdict_needs_the_interval_and_the_adjusted_p_value() -> None:
    better = Difference(0.1, Interval(0.02, 0.18), 0.01)
    assert verdict(better, 0.05) == "a"
    assert verdict(better, 0.051) == "not shown"
    assert verdict(Difference(0.1, Interval(0.0, 0.2), 0.01), 0.01) == "not shown"
    assert verdict(Difference(-0.1, Interval(-0.18, -0.02), 0.01), 0.02) == "b"


def test_holm_multiplies_the_smallest_p_value_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_same_seed_gives_the_same_p_values() -> None:
    scores = np.random.default_rng(0).random((50, 3)) - 0.4
    groups = np.arange(50) // 2
    assert p_values(scores, groups, 300, seed=5) == p_values(scores, groups, 300, seed=5)
    assert p_values(scores, groups, 300, seed=5) != p_values(scores, groups, 300, seed=6)


def test_many_comparisons_get_enough_resamples_to_be_significant() -> None:
    assert min_resamples(2000, 3) == 2000
    assert 200 / (min_resamples(2000, 200) + 1) <= 0.05


def test_different_question_sets_are_an_error() -> None:
    with pytest.raises(UsageError, match="question sets differ"):
        compare(column(np.ones(3)), column(np.ones(4)), np.arange(3), 100, seed=0)


def test_mcnemar_is_the_sign_test_on_the_discordant_questions() -> None:
    a, b = np.array([1, 1, 1, 1, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 0, 1, 1, 0])
    # 5 against 1 of 6: 2 * (1 + 6) / 64.
    assert mcnemar(a, b) == McNemar(5, 1, 14 / 64)
    assert mcnemar(b, a) == McNemar(1, 5, 14 / 64)
    assert mcnemar(a, a) == McNemar(0, 0, 1.0)
    assert mcnemar(np.array([1, 0]), np.array([0, 1])).p_value == 1.0


def test_mcnemar_gives_the_published_p_value_and_does_not_overflow() -> None:
    # 100 questions, 86 against 90 right: 4 and 0 discordant.
    a, b = np.zeros(100), np.zeros(100)
    b[:4] = 1
    assert mcnemar(a, b).p_value == pytest.approx(0.125)
    many = np.arange(4000) % 2
    assert mcnemar(many, 1 - many).p_value == pytest.approx(1.0)
    assert mcnemar(np.ones(4000), np.zeros(4000)).p_value == 0.0
