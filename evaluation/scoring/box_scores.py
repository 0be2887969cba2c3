"""Score answers that are boxes: figures of each system and of its control runs, and comparisons of systems in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.confidence_intervals import mean_intervals
from evaluation.config import EvalConfig
from evaluation.metrics.grounding import box_score
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.schema.answer_figures import GroundingFigures, GroundingPart
from evaluation.schema.summary_file import GroundingComparison, GroundingSummary
from evaluation.scoring.answer_scores import BOUND_CHOICES, References, Scores, sort_choices
from evaluation.scoring.pairwise_comparisons import ScorePair, paired_differences, score_pairs
from evaluation.statistics import clusters, with_verdicts

BOX_METRICS = ("acc_50", "iou")
"""The metric that decides first."""


@dataclass(frozen=True, slots=True)
class BoxScores:
    """A system's answers to questions for boxes: texts[choice][i] and scores[choice][metric][i] of question i; the metrics are those of
    BOX_METRICS and `malformed`, 1 for an answer without a box."""

    questions: list[Question]
    predictions: list[Prediction]
    texts: dict[str, list[str]]
    scores: dict[str, Scores]

    @property
    def figures(self) -> dict[str, GroundingFigures]:
        """The figures of each choice."""
        return {choice: grounding_figures(scores, self.questions) for choice, scores in self.scores.items()}


def score_boxes(questions: Sequence[Question], predictions: Sequence[Prediction], references: References) -> BoxScores | None:
    """The scores of the questions whose answer is a box; None if there are none. A failed question counts as malformed."""
    rows = [(q, p) for q, p in zip(questions, predictions, strict=True) if q.asks_for_box]
    if not rows:
        return None
    choices = sort_choices(name for name in rows[0][1].choices or {} if name not in BOUND_CHOICES)
    texts = {name: ["" if p.error is not None else (p.choices or {}).get(name, "") for _, p in rows] for name in choices}
    scores = {name: _scores(answers, [references[q.sample_id] for q, _ in rows]) for name, answers in texts.items()}
    return BoxScores([q for q, _ in rows], [p for _, p in rows], texts, scores)


def _scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    scored = [box_score(answer, known) for answer, known in zip(answers, references, strict=True)]
    columns = {
        "acc_50": [one.acc_50 for one in scored],
        "iou": [one.iou for one in scored],
        "malformed": [one.is_malformed for one in scored],
    }
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def grounding_figures(scores: Scores, questions: Sequence[Question]) -> GroundingFigures:
    """Means of one choice with their intervals, and the means by language and source."""
    groups = clusters([question.image_ids for question in questions])
    accuracy, overlap = (scores[metric] for metric in BOX_METRICS)
    accuracy_interval, overlap_interval = mean_intervals(np.stack([accuracy, overlap], axis=1), groups)
    by_language, by_source = (
        {
            label: GroundingPart(int(mask.sum()), float(accuracy[mask].mean()), float(overlap[mask].mean()))
            for label in sorted(set(labels))
            if (mask := np.array(labels) == label).any()
        }
        for labels in ([question.request.language for question in questions], [question.source for question in questions])
    )
    return GroundingFigures(
        questions=len(questions),
        clusters=int(groups.max()) + 1,
        acc_50=float(accuracy.mean()),
        acc_50_ci95=accuracy_interval,
        mean_iou=float(overlap.mean()),
        mean_iou_ci95=overlap_interval,
        malformed=int(scores["malformed"].sum()),
        by_language=dict(by_language),
        by_source=dict(by_source),
    )


def per_sample_scores(boxes: BoxScores | None) -> dict[str, dict[str, dict[str, float]]]:
    """sample id -> choice -> metric -> score."""
    if boxes is None:
        return {}
    return {
        question.sample_id: {choice: {name: float(values[i]) for name, values in own.items()} for choice, own in boxes.scores.items()}
        for i, question in enumerate(boxes.questions)
    }


def summarise_boxes(
    systems: Mapping[str, BoxScores | None], controls: Mapping[str, BoxScores | None], control_of: str | None, settings: EvalConfig
) -> GroundingSummary | None:
    """What is said of all systems together; None if there are no questions for boxes.

    Args:
        systems: scores by system.
        controls: scores of the control runs, by their names.
        control_of: the system of the control runs; None if there is none.
        settings: groups, curve and statistics.
    """
    scored = {name: scores for name, scores in systems.items() if scores is not None}
    if not scored:
        return None
    of_controls = {name: scores for name, scores in controls.items() if scores is not None}
    pairs = score_pairs(
        {name: one.scores for name, one in scored.items()},
        next(iter(scored.values())).questions,
        {name: (one.questions, one.scores["first"]) for name, one in of_controls.items()},
        control_of,
        settings,
    )
    figures = {name: one.figures["first"] for name, one in of_controls.items()}
    return GroundingSummary(_comparisons(pairs, settings), figures or None, control_of if figures else None)


def _comparisons(pairs: Sequence[ScorePair], settings: EvalConfig) -> list[GroundingComparison]:
    """One comparison per pair; p-values are Holm-adjusted over all of them, for each metric on its own."""
    found = paired_differences(pairs, BOX_METRICS, settings)
    tested = zip(*(with_verdicts(found.by_metric[metric]) for metric in BOX_METRICS), strict=True)
    return [
        GroundingComparison(
            **vars(accuracy),
            a=pairs[i].a,
            b=pairs[i].b,
            metric=BOX_METRICS[0],
            differing_questions=found.differing[i],
            mean_iou=overlap,
            minimum_detectable_effect=found.effects[i],
        )
        for i, (accuracy, overlap) in enumerate(tested)
    ]
