"""Unanswerable questions, on cases computed by hand."""

import math

import numpy as np
import pytest

from answering.protocol import Candidate
from evaluation.metrics.unanswerable import average_precision, f1, is_unanswerable, unanswerable_metrics, unanswerable_probability
from evaluation.prediction_files import Prediction
from evaluation.schema.summary_file import to_json


def prediction(name: str, *candidates: tuple[str, float | None], error: str | None = None) -> Prediction:
    converted = tuple(Candidate(text, log_prob, log_prob, text) for text, log_prob in candidates)
    return Prediction(name, "What?", name, converted, error, "", {}, {})


def test_half_of_the_annotators_make_a_question_unanswerable() -> None:
    assert is_unanswerable(["Unanswerable."] * 5 + ["red"] * 5)
    assert is_unanswerable(["unsuitable image"] * 3 + ["无法回答。"] * 2 + ["红"] * 4)
    assert not is_unanswerable(["unanswerable"] * 4 + ["red"] * 6)
    assert not is_unanswerable([])


def test_the_probability_is_the_share_of_unanswerable_candidates() -> None:
    two_thirds = prediction("a", ("unanswerable", math.log(0.4)), ("red", math.log(0.2)))
    assert unanswerable_probability(two_thirds.candidates) == pytest.approx(2 / 3)
    assert unanswerable_probability(prediction("a", ("Unanswerable", None), ("red", None), ("blue", None)).candidates) == pytest.approx(
        1 / 3
    )
    assert unanswerable_probability(()) == 0.0


def test_average_precision_equals_that_of_scikit_learn() -> None:
    # Positives at ranks 1 and 3 of 4: (1/2) * 1 + (1/2) * (2/3).
    assert average_precision(np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(5 / 6)
    # All scores equal: one threshold, precision 1/2.
    assert average_precision(np.array([True, False]), np.array([0.5, 0.5])) == pytest.approx(0.5)


def test_f1_is_the_harmonic_mean() -> None:
    assert f1(np.array([True, True, False, False]), np.array([True, False, True, False])) == pytest.approx(0.5)
    assert f1(np.array([True]), np.array([False])) == 0.0


def test_systems_are_scored_only_if_there_are_unanswerable_questions() -> None:
    none, red = ["unanswerable"] * 10, ["red"] * 10
    predictions = [
        prediction("a", ("unanswerable", -0.1)),
        prediction("b", ("red", -0.1)),
        prediction("c", ("unanswerable", -0.1), error="failed"),
    ]
    assert to_json(unanswerable_metrics(predictions, {"a": none, "b": red, "c": none})) == {
        "questions": 2,
        "average_precision": pytest.approx(1 / 2 + 1 / 2 * 2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    assert unanswerable_metrics(predictions, {"a": red, "b": red, "c": red}) is None
