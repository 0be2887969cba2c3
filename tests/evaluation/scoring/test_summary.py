"""The figures of the summary: pictures, not questions, are drawn, and Holm holds over all comparisons."""

import numpy as np
import pytest

from answering.protocol import Request
from dataset.sample import Message
from evaluation.config import EvalConfig
from evaluation.questions import Question
from evaluation.robustness.robustness_run import Robustness, summarise_robustness
from evaluation.scoring.answer_scores import AnswerScores
from evaluation.scoring.summary import ScorePair, SystemResult, comparisons, metric_summary, score_pairs
from evaluation.statistics import holm, minimum_detectable_effect

SETTINGS = EvalConfig(bootstrap=400, corruptions=("blur",))


def questions(images: int, each: int) -> list[Question]:
    """So many questions about each of the pictures."""
    return [
        Question(Request(f"{i}-{j}", (), (Message("user", "What color is it?"),)), (i,), (str(i),), "planted")
        for i in range(images)
        for j in range(each)
    ]


def column(images: int, each: int, seed: int) -> np.ndarray:
    """Right or wrong, the same for all questions about a picture."""
    return np.repeat(np.random.default_rng(seed).integers(0, 2, images).astype(float), each)


def pair(a: np.ndarray, b: np.ndarray, asked: list[Question], name: str = "a") -> ScorePair:
    return ScorePair(f"{name}/first", "b/first", {"vqa_accuracy": a, "exact": a}, {"vqa_accuracy": b, "exact": b}, asked)


def test_ten_questions_about_a_image_that_say_the_same_make_no_difference_surer() -> None:
    rows = [comparisons([pair(column(20, n, 1), column(20, n, 2), questions(20, n))], SETTINGS)[0] for n in (1, 10)]
    for key in ("difference", "ci95", "p_value", "smallest_shown"):
        assert rows[0][key] == pytest.approx(rows[1][key]), key
    # McNemar's test takes every question for a draw of its own, and says so.
    assert rows[1]["mcnemar"]["only_a"] == 10 * rows[0]["mcnemar"]["only_a"]


def test_ten_questions_about_a_image_that_say_the_same_make_no_interval_narrower() -> None:
    one, ten = (metric_summary({"vqa_accuracy": column(20, n, 1)}, questions(20, n), SETTINGS) for n in (1, 10))
    assert one["vqa_accuracy_ci95"] == pytest.approx(ten["vqa_accuracy_ci95"])
    worse = [
        summarise_robustness({"ours": Robustness(questions(20, n), column(20, n, 1), {("blur", 3): column(20, n, 2)})}, SETTINGS)["ours"]
        for n in (1, 10)
    ]
    for key in ("vqa_accuracy", "vqa_accuracy_ci95"):
        assert worse[0]["clean"][key] == pytest.approx(worse[1]["clean"][key])
        assert worse[0]["corrupted"]["blur"][0][key] == pytest.approx(worse[1]["corrupted"]["blur"][0][key])


def test_each_strength_has_its_own_accuracy_in_the_order_of_the_strengths() -> None:
    shares = {("blur", 1): 16, ("blur", 5): 4, ("noise", 1): 12, ("noise", 5): 8}
    corrupted = {condition: (np.arange(20) < right).astype(float) for condition, right in shares.items()}
    found = summarise_robustness({"ours": Robustness(questions(20, 1), np.ones(20), corrupted)}, SETTINGS)["ours"]  # type: ignore[arg-type]
    assert (found["questions"], found["clean"]["vqa_accuracy"]) == (20, 1.0)
    points = {kind: [(point["strength"], point["vqa_accuracy"]) for point in row] for kind, row in found["corrupted"].items()}
    assert points == {"blur": [(1, 0.8), (5, 0.2)], "noise": [(1, 0.6), (5, 0.4)]}
    for point in [found["clean"], *found["corrupted"]["blur"], *found["corrupted"]["noise"]]:
        low, high = point["vqa_accuracy_ci95"]
        assert low <= point["vqa_accuracy"] <= high


def test_a_control_is_compared_with_the_same_questions_of_its_system() -> None:
    """Questions without a picture have no other picture to be asked about."""
    asked = questions(6, 1)
    own = {"vqa_accuracy": np.arange(6.0), "exact": np.arange(6.0)}
    system = SystemResult("checkpoint", {}, {}, 0, None, 1.0, AnswerScores([], {}, {"first": own}, {}, None))
    control = {"vqa_accuracy": np.zeros(2), "exact": np.zeros(2)}
    (found,) = score_pairs({"ours": system}, asked, {"shuffled_images": ([asked[4], asked[1]], control)}, "ours", SETTINGS)
    assert (found.a, found.b) == ("ours/first", "controls/shuffled_images")
    assert found.scores_a["vqa_accuracy"].tolist() == [4.0, 1.0]
    assert [question.sample_id for question in found.questions] == ["4-0", "1-0"]


def test_holm_holds_over_all_comparisons_and_over_all_of_mcnemars_tests() -> None:
    base = column(60, 1, 0)
    worse = [np.where(np.arange(60) < n, 0.0, base) for n in (8, 14, 20)]
    tested = [pair(base, scores, questions(60, 1), str(i)) for i, scores in enumerate(worse)]
    rows = comparisons(tested, SETTINGS)
    p = [row["p_value"] for row in rows]
    assert len(set(p)) == 3
    assert [row["p_holm"] for row in rows] == holm(p) != p
    exact = [row["mcnemar"]["p_value"] for row in rows]
    assert [row["mcnemar"]["p_holm"] for row in rows] == holm(exact) != exact
    assert [row["verdict"] for row in rows] == ["a" if adjusted <= 0.05 else "not shown" for adjusted in holm(p)]
    for row, scores in zip(rows, worse, strict=True):
        assert row["smallest_shown"] == minimum_detectable_effect(base - scores, np.arange(60), 3)


def test_many_comparisons_are_drawn_so_often_that_one_can_be_won() -> None:
    tested = [pair(np.ones(30), np.zeros(30), questions(30, 1), str(i)) for i in range(40)]
    rows = comparisons(tested, EvalConfig(bootstrap=100))
    assert {row["verdict"] for row in rows} == {"a"}
