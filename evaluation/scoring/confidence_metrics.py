"""Figures of summary.json about the confidence: is it calibrated, for which kinds of questions, and what does abstaining gain?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from answering.rerank.choose_answer import displayed_choice
from evaluation.answer_selection import ABSTAINING
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.questions import Question
from evaluation.scoring.answer_scores import AnswerScores
from evaluation.scoring.question_categories import category_names

CONFIDENT = 0.9
"""Confidence from which an answer is claimed to be nearly certain."""


def confidence_metrics(questions: Sequence[Question], short: AnswerScores, abstain_below: float | None) -> dict[str, Any]:
    """Calibration and selective accuracy of the displayed answers. A failed question counts with confidence 0; one that has no
    confidence because nothing scored its candidates (it has no image) is left out.

    Returns:
        ece, bins: as in `reliability`; brier: mean squared distance of confidence and accuracy; risk_coverage: accuracy of the
        most confident fraction of the answers; aurc: mean of 1 - accuracy over all coverages (Geifman & El-Yaniv 2017,
        arXiv:1705.08500); by_category, by_language, by_source: the calibration of each kind of question (`_part`); unlike: that of the
        questions that are unlike those of the calibration, if there are any; abstaining: with `abstain_below`, fraction of questions
        still answered and their accuracy.
    """
    rows = [i for i, p in enumerate(short.predictions) if p.confidence is not None or not p.candidates]
    questions, predictions = [questions[i] for i in rows], [short.predictions[i] for i in rows]
    confidences = np.array([prediction.confidence or 0.0 for prediction in predictions])
    correct = short.scores[displayed_choice(short.scores)][PRIMARY_METRIC][rows]
    _, accuracy = risk_coverage(confidences, correct)
    metrics: dict[str, Any] = {
        "questions": len(correct),
        "fitted_on": "validation",
        **reliability(confidences, correct),
        "brier": float(np.mean((confidences - correct) ** 2)),
        "aurc": float(np.mean(1 - accuracy)),
        "risk_coverage": [
            {"coverage": fraction, PRIMARY_METRIC: float(accuracy[round(fraction * len(correct)) - 1])}
            for fraction in _COVERAGES
            if fraction * len(correct) >= 1
        ],
    }
    labels = {
        "by_category": ([question.category for question in questions], category_names()),
        "by_language": ([question.request.language for question in questions], ["en", "zh"]),
        "by_source": ([question.source for question in questions], sorted({question.source for question in questions})),
    }
    for key, (values, order) in labels.items():
        masks = {name: np.array(values) == name for name in order}
        metrics[key] = {name: _part(confidences[mask], correct[mask]) for name, mask in masks.items() if mask.any()}
    unlike = np.array([bool(prediction.unlike) for prediction in predictions])
    if unlike.any():
        metrics["unlike"] = _part(confidences[unlike], correct[unlike])
    if abstain_below is not None and ABSTAINING in short.scores:
        answered = confidences >= abstain_below
        metrics["abstaining"] = {
            "below": abstain_below,
            "answered": float(answered.mean()),
            **({PRIMARY_METRIC: float(correct[answered].mean())} if answered.any() else {}),
        }
    return metrics


def _part(confidences: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Calibration of some questions: their number, mean confidence, accuracy, calibration error, and the accuracy of the answers that
    are claimed to be nearly certain, if there are any.
    """
    confident = confidences >= CONFIDENT
    return {
        "questions": len(correct),
        "confidence": float(confidences.mean()),
        PRIMARY_METRIC: float(correct.mean()),
        "ece": float(reliability(confidences, correct)["ece"]),
        **({"confident": {"questions": int(confident.sum()), PRIMARY_METRIC: float(correct[confident].mean())}} if confident.any() else {}),
    }


_COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))


def risk_coverage(confidences: np.ndarray, answer_accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy [n] when only the 1, 2, ..., n most confident answers are given.

    The order of equally confident answers is arbitrary, so each of them counts with their mean accuracy.
    """
    order = np.argsort(-confidences, kind="stable")
    _, inverse = np.unique(-confidences[order], return_inverse=True)
    means = np.bincount(inverse, weights=answer_accuracy[order]) / np.bincount(inverse)
    n = np.arange(1, len(answer_accuracy) + 1)
    return n / len(answer_accuracy), np.cumsum(means[inverse]) / n
