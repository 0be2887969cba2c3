"""Unanswerable questions, on cases computed by hand."""

import math

import pytest

from answering.protocol import Candidate
from evaluation.metrics.unanswerable import is_unanswerable, unanswerable_metrics, unanswerable_probability
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


def ranked(*probabilities: float) -> list[Prediction]:
    return [prediction(f"{i}", ("unanswerable", math.log(p)), ("red", math.log(1 - p))) for i, p in enumerate(probabilities)]


def test_average_precision_counts_equal_scores_as_one_threshold() -> None:
    def measured(*probabilities: float, positive: tuple[int, ...]) -> float:
        references = {f"{i}": ["unanswerable" if i in positive else "red"] for i in range(len(probabilities))}
        figures = unanswerable_metrics(ranked(*probabilities), references)
        assert figures is not None
        return figures.average_precision

    # Positives at ranks 1 and 3 of 4: (1/2) * 1 + (1/2) * (2/3).
    assert measured(0.9, 0.8, 0.7, 0.1, positive=(0, 2)) == pytest.approx(5 / 6)
    # All scores equal: one threshold, precision 1/2.
    assert measured(0.5, 0.5, positive=(0,)) == pytest.approx(0.5)


def test_f1_is_the_harmonic_mean() -> None:
    none, red = ["unanswerable"], ["red"]
    half = unanswerable_metrics(ranked(0.9, 0.1, 0.9, 0.1), {"0": none, "1": none, "2": red, "3": red})
    missed = unanswerable_metrics(ranked(0.1), {"0": none})
    assert half is not None and missed is not None
    assert half.f1 == pytest.approx(0.5)
    assert missed.f1 == 0.0


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
