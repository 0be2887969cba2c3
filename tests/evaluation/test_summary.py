"""The figures of the summary: pictures, not questions, are drawn, and Holm holds over all comparisons."""

import numpy as np
import pytest

from answering.protocol import Request
from dataset.sample import Message
from evaluation.config import EvalConfig
from evaluation.questions import Question
from evaluation.robustness import Robustness, summarised
from evaluation.significance import holm, smallest_shown
from evaluation.summary import Pair, comparisons, measures

SETTINGS = EvalConfig(bootstrap=400, corruptions=("blur",))


def questions(pictures: int, each: int) -> list[Question]:
    """So many questions about each of the pictures."""
    return [
        Question(Request(f"{i}-{j}", (), (Message("user", "What color is it?"),)), (i,), (str(i),), "planted")
        for i in range(pictures)
        for j in range(each)
    ]


def column(pictures: int, each: int, seed: int) -> np.ndarray:
    """Right or wrong, the same for all questions about a picture."""
    return np.repeat(np.random.default_rng(seed).integers(0, 2, pictures).astype(float), each)


def pair(a: np.ndarray, b: np.ndarray, asked: list[Question], name: str = "a") -> Pair:
    return Pair(f"{name}/first", "b/first", {"vqa_accuracy": a, "exact": a}, {"vqa_accuracy": b, "exact": b}, asked)


def test_ten_questions_about_a_picture_that_say_the_same_make_no_difference_surer() -> None:
    rows = [comparisons([pair(column(20, n, 1), column(20, n, 2), questions(20, n))], SETTINGS)[0] for n in (1, 10)]
    for key in ("difference", "ci95", "p_value", "smallest_shown"):
        assert rows[0][key] == pytest.approx(rows[1][key]), key
    # McNemar's test takes every question for a draw of its own, and says so.
    assert rows[1]["mcnemar"]["only_a"] == 10 * rows[0]["mcnemar"]["only_a"]


def test_ten_questions_about_a_picture_that_say_the_same_make_no_interval_narrower() -> None:
    one, ten = (measures({"vqa_accuracy": column(20, n, 1)}, questions(20, n), SETTINGS) for n in (1, 10))
    assert one["vqa_accuracy_ci95"] == pytest.approx(ten["vqa_accuracy_ci95"])
    worse = [
        summarised({"ours": Robustness(questions(20, n), column(20, n, 1), {("blur", 3): column(20, n, 2)})}, SETTINGS)["ours"]
        for n in (1, 10)
    ]
    for key in ("vqa_accuracy", "vqa_accuracy_ci95"):
        assert worse[0]["clean"][key] == pytest.approx(worse[1]["clean"][key])
        assert worse[0]["corrupted"]["blur"][0][key] == pytest.approx(worse[1]["corrupted"]["blur"][0][key])


def test_holm_holds_over_all_comparisons_and_over_all_of_mcnemars_tests() -> None:
    base = column(60, 1, 0)
    worse = [np.where(np.arange(60) < n, 0.0, base) for n in (8, 14, 20)]
    pairs = [pair(base, scores, questions(60, 1), str(i)) for i, scores in enumerate(worse)]
    rows = comparisons(pairs, SETTINGS)
    p = [row["p_value"] for row in rows]
    assert len(set(p)) == 3
    assert [row["p_holm"] for row in rows] == holm(p) != p
    exact = [row["mcnemar"]["p_value"] for row in rows]
    assert [row["mcnemar"]["p_holm"] for row in rows] == holm(exact) != exact
    assert [row["verdict"] for row in rows] == ["a" if adjusted <= 0.05 else "not shown" for adjusted in holm(p)]
    for row, scores in zip(rows, worse, strict=True):
        assert row["smallest_shown"] == smallest_shown(base - scores, np.arange(60), 3)


def test_many_comparisons_are_drawn_so_often_that_one_can_be_won() -> None:
    pairs = [pair(np.ones(30), np.zeros(30), questions(30, 1), str(i)) for i in range(40)]
    rows = comparisons(pairs, EvalConfig(bootstrap=100))
    assert {row["verdict"] for row in rows} == {"a"}
