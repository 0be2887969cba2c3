"""Figures of summary.json about the confidence: is it calibrated, for which kinds of questions, and what does abstaining gain?"""

from collections.abc import Sequence

import numpy as np

from answering.rerank.choose_answer import displayed_choice
from evaluation.answer_selection import ABSTAINING
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.questions import Question
from evaluation.schema.answer_figures import (
    Abstaining,
    ConfidenceFigures,
    ConfidencePart,
    CoveragePoint,
    PartFigures,
    Reliability,
    ReliabilityBin,
)
from evaluation.scoring.answer_scores import AnswerScores, masks_by_kind

BINS = 10
"""Number of equal-width bins over 0..1."""
_COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
CONFIDENT = 0.9
"""Confidence from which an answer is claimed to be nearly certain."""


def confidence_metrics(questions: Sequence[Question], short: AnswerScores, abstain_below: float | None) -> ConfidenceFigures:
    """Calibration and selective accuracy of the displayed answers (AURC: Geifman & El-Yaniv 2017, arXiv:1705.08500).

    A failed question counts with confidence 0; one that has no confidence because nothing scored its candidates (it has no image) is
    left out.
    """
    rows = [i for i, p in enumerate(short.predictions) if p.confidence is not None or not p.candidates]
    questions, predictions = [questions[i] for i in rows], [short.predictions[i] for i in rows]
    confidences = np.array([prediction.confidence or 0.0 for prediction in predictions])
    correct = short.scores[displayed_choice(short.scores)][PRIMARY_METRIC][rows]
    _, accuracy = risk_coverage(confidences, correct)
    by_category, by_language, by_source = (
        {label: _part(confidences[mask], correct[mask]) for label, mask in masks.items()} for masks in masks_by_kind(questions)
    )
    unlike = np.array([bool(prediction.unlike) for prediction in predictions])
    abstaining = None
    if abstain_below is not None and ABSTAINING in short.scores:
        answered = confidences >= abstain_below
        abstaining = Abstaining(abstain_below, float(answered.mean()), float(correct[answered].mean()) if answered.any() else None)
    return ConfidenceFigures(
        questions=len(correct),
        fitted_on="validation",
        **vars(reliability(confidences, correct)),
        brier=float(np.mean((confidences - correct) ** 2)),
        aurc=float(np.mean(1 - accuracy)),
        risk_coverage=[
            CoveragePoint(fraction, float(accuracy[round(fraction * len(correct)) - 1]))
            for fraction in _COVERAGES
            if fraction * len(correct) >= 1
        ],
        by_category=by_category,
        by_language=by_language,
        by_source=by_source,
        unlike=_part(confidences[unlike], correct[unlike]) if unlike.any() else None,
        abstaining=abstaining,
    )


def _part(confidences: np.ndarray, correct: np.ndarray) -> ConfidencePart:
    """Calibration of some questions, and the accuracy of the answers that are claimed to be nearly certain, if there are any."""
    confident = confidences >= CONFIDENT
    return ConfidencePart(
        questions=len(correct),
        confidence=float(confidences.mean()),
        vqa_accuracy=float(correct.mean()),
        ece=reliability(confidences, correct).ece,
        confident=PartFigures(int(confident.sum()), float(correct[confident].mean())) if confident.any() else None,
    )


def reliability(scores: np.ndarray, accuracies: np.ndarray) -> Reliability:
    """Reliability diagram of scores [questions] and accuracies [questions], both in 0..1.

    Expected calibration error (Guo et al. 2017, arXiv:1706.04599, section 2): the mean distance of score and accuracy over the bins,
    weighted by their questions.
    """
    bin_index = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        ReliabilityBin(
            low=i / BINS,
            high=(i + 1) / BINS,
            questions=int(in_bin.sum()),
            score=float(scores[in_bin].mean()),
            vqa_accuracy=float(accuracies[in_bin].mean()),
        )
        for i in range(BINS)
        if (in_bin := bin_index == i).any()
    ]
    ece = sum(bin_.questions * abs(bin_.score - bin_.vqa_accuracy) for bin_ in bins) / len(scores)
    return Reliability(ece, bins)


def risk_coverage(confidences: np.ndarray, answer_accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy [n] when only the 1, 2, ..., n most confident answers are given.

    The order of equally confident answers is arbitrary, so each of them counts with their mean accuracy.
    """
    order = np.argsort(-confidences, kind="stable")
    _, inverse = np.unique(-confidences[order], return_inverse=True)
    means = np.bincount(inverse, weights=answer_accuracy[order]) / np.bincount(inverse)
    n = np.arange(1, len(answer_accuracy) + 1)
    return n / len(answer_accuracy), np.cumsum(means[inverse]) / n
