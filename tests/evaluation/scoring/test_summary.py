"""Figures of the summary: images, not questions, are resampled, and Holm corrects over all comparisons."""

import numpy as np
import pytest

from answering.protocol import Request
from dataset.sample import Message
from evaluation.config import EvalConfig
from evaluation.metrics.short_answers import METRICS
from evaluation.power_analysis import minimum_detectable_effect
from evaluation.questions import Question
from evaluation.robustness import robustness_figures
from evaluation.scoring.pairwise_comparisons import ScorePair, comparisons, score_pairs
from evaluation.scoring.summary import metric_summary
from evaluation.statistics import holm

SETTINGS = EvalConfig(resamples=400, corruptions=("blur",))


def questions(images: int, each: int) -> list[Question]:
    """`each` questions about each image."""
    return [
        Question(Request(f"{i}-{j}", (), (Message("user", "What color is it?"),)), (i,), (str(i),), "planted")
        for i in range(images)
        for j in range(each)
    ]


def column(images: int, each: int, seed: int) -> np.ndarray:
    """Random scores 0 or 1, equal for all questions about an image."""
    return np.repeat(np.random.default_rng(seed).integers(0, 2, images).astype(float), each)


def scores(values: np.ndarray, normalised: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The metrics that are compared; M4C has other values if these are given."""
    return {"vqa_accuracy": values, "vqa_accuracy_m4c": values if normalised is None else normalised, "exact": values}


def pair(a: np.ndarray, b: np.ndarray, pair_questions: list[Question], name: str = "a") -> ScorePair:
    return ScorePair(f"{name}/first", "b/first", scores(a), scores(b), pair_questions)


def test_repeated_questions_about_an_image_do_not_make_a_difference_more_certain() -> None:
    rows = [comparisons([pair(column(20, n, 1), column(20, n, 2), questions(20, n))], SETTINGS)[0] for n in (1, 10)]
    for key in ("difference", "ci95", "p_value"):
        assert getattr(rows[0], key) == pytest.approx(getattr(rows[1], key)), key
    assert rows[0].minimum_detectable_effect == pytest.approx(rows[1].minimum_detectable_effect, rel=0.4)
    # McNemar's test treats questions as independent.
    few, many = (row.mcnemar for row in rows)
    assert few is not None and many is not None
    assert many.only_a == 10 * few.only_a


def test_repeated_questions_about_an_image_do_not_make_an_interval_narrower() -> None:
    one, ten = (metric_summary(dict.fromkeys(METRICS, column(20, n, 1)), questions(20, n)) for n in (1, 10))
    assert one.vqa_accuracy_ci95 == pytest.approx(ten.vqa_accuracy_ci95)
    robustness = [robustness_figures(questions(20, n), column(20, n, 1), {("blur", 3): column(20, n, 2)}) for n in (1, 10)]
    for few, many in zip(*((figures.clean, figures.corrupted["blur"][0]) for figures in robustness), strict=True):
        assert (few.vqa_accuracy, *few.vqa_accuracy_ci95) == pytest.approx((many.vqa_accuracy, *many.vqa_accuracy_ci95))


def test_each_strength_has_its_own_accuracy_in_increasing_order() -> None:
    shares = {("blur", 1): 16, ("blur", 5): 4, ("noise", 1): 12, ("noise", 5): 8}
    corrupted = {condition: (np.arange(20) < right).astype(float) for condition, right in shares.items()}
    found = robustness_figures(questions(20, 1), np.ones(20), corrupted)  # type: ignore[arg-type]
    assert (found.questions, found.clean.vqa_accuracy) == (20, 1.0)
    points = {kind: [(point.strength, point.vqa_accuracy) for point in row] for kind, row in found.corrupted.items()}
    assert points == {"blur": [(1, 0.8), (5, 0.2)], "noise": [(1, 0.6), (5, 0.4)]}
    for point in [found.clean, *found.corrupted["blur"], *found.corrupted["noise"]]:
        low, high = point.vqa_accuracy_ci95
        assert low <= point.vqa_accuracy <= high


def test_a_control_is_compared_with_the_same_questions_of_its_system() -> None:
    """A control run may lack questions (those without images) and have another order."""
    asked = questions(6, 1)
    own, control = scores(np.arange(6.0)), scores(np.zeros(2))
    (found,) = score_pairs({"ours": {"first": own}}, asked, {"shuffled_images": ([asked[4], asked[1]], control)}, "ours", SETTINGS)
    assert (found.a, found.b) == ("ours/first", "controls/shuffled_images")
    assert found.scores_a["vqa_accuracy"].tolist() == [4.0, 1.0]
    assert [question.sample_id for question in found.questions] == ["4-0", "1-0"]


def test_holm_corrects_over_all_comparisons_and_separately_over_all_mcnemar_tests() -> None:
    base = column(60, 1, 0)
    worse = [np.where(np.arange(60) < n, 0.0, base) for n in (8, 14, 20)]
    pairs = [pair(base, values, questions(60, 1), str(i)) for i, values in enumerate(worse)]
    rows = comparisons(pairs, SETTINGS)
    p = [row.p_value for row in rows]
    assert len(set(p)) == 3
    assert [row.p_holm for row in rows] == holm(p) != p
    tests = [row.mcnemar for row in rows if row.mcnemar is not None]
    exact = [test.p_value for test in tests]
    assert [test.p_holm for test in tests] == holm(exact) != exact
    assert [row.verdict for row in rows] == ["a" if adjusted <= 0.05 else "not shown" for adjusted in holm(p)]
    for row, values in zip(rows, worse, strict=True):
        assert row.minimum_detectable_effect == minimum_detectable_effect(base - values, np.arange(60), 3)


def test_a_difference_of_form_alone_has_another_verdict_under_m4c() -> None:
    """One side lost points for a capital letter, which M4C ignores."""
    right, capitalised = np.ones(60), np.where(np.arange(60) < 24, 0.0, 1.0)
    forms = ScorePair("plain/first", "capital/first", scores(right, right), scores(capitalised, right), questions(60, 1))
    (row,) = comparisons([forms], SETTINGS)
    assert (row.verdict, row.differing_questions) == ("a", 24)
    assert (row.vqa_accuracy_m4c.verdict, row.vqa_accuracy_m4c.difference) == ("not shown", 0.0)


def test_the_summary_counts_what_an_interval_rests_on() -> None:
    figures = metric_summary(dict.fromkeys(METRICS, column(20, 3, 1)), questions(20, 3))
    assert (figures.questions, figures.clusters) == (60, 20)


def test_many_comparisons_get_enough_resamples_to_be_significant() -> None:
    pairs = [pair(np.ones(30), np.zeros(30), questions(30, 1), str(i)) for i in range(40)]
    rows = comparisons(pairs, EvalConfig(resamples=100))
    assert {row.verdict for row in rows} == {"a"}
