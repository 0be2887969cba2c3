"""Scores of choices, question by question: here, and only here, answers meet references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from answering.rerank import chosen_text
from evaluation import captions
from evaluation.metrics import METRICS, vqa_accuracy, vqa_accuracy_m4c
from evaluation.predictions import Prediction
from evaluation.questions import Question

CHOICES = ("first", "clip", "reranked", "majority", "random", "oracle")
"""Ways of choosing, in the order in which they are shown."""
HONEST = frozenset({"first", "clip", "reranked", "majority"})
"""Those that a user could really use: random is a floor, the oracle looks at the references."""

References = Mapping[str, Sequence[str]]
Scores = dict[str, np.ndarray]
"""Metric -> score of each question."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Short answers of a system: texts[choice][i] and scores[choice][metric][i] for its i-th short question."""

    predictions: list[Prediction]
    texts: dict[str, list[str]]
    scores: dict[str, Scores]


def oracle(prediction: Prediction, references: Sequence[str]) -> str:
    """The candidate that scores best: what a perfect choice could reach. It looks at the references and is no result."""
    scores = [(vqa_accuracy(c.text, references), vqa_accuracy_m4c(c.text, references)) for c in prediction.candidates]
    return chosen_text(prediction.candidates, scores.index(max(scores)) if scores else 0)


def score(predictions: Sequence[Prediction], references: References) -> Scored:
    """Score every choice of the predictions, which are of short answers. A failed question counts as wrong."""
    texts = {
        name: [(p.choices or {})[name] for p in predictions] for name in CHOICES if predictions and name in (predictions[0].choices or {})
    }
    if predictions:
        texts["oracle"] = [oracle(p, references[p.sample_id]) for p in predictions]
    return Scored(list(predictions), texts, {name: _scores(predictions, chosen, references) for name, chosen in texts.items()})


def right(prediction: Prediction, text: str, references: References) -> float:
    """Official accuracy of an answer; 0 for a failed question, whatever the references say."""
    return 0.0 if prediction.error is not None else vqa_accuracy(text, references[prediction.sample_id])


def _scores(predictions: Sequence[Prediction], texts: Sequence[str], references: References) -> Scores:
    return {
        name: np.array(
            [0.0 if p.error is not None else metric(text, references[p.sample_id]) for p, text in zip(predictions, texts, strict=True)]
        )
        for name, metric in METRICS.items()
    }


def caption_scores(
    questions: Sequence[Question], predictions: Sequence[Prediction], references: References
) -> dict[str, dict[str, dict[str, float]]]:
    """Caption metrics by choice and by task and language ("caption en"), over questions that want no short answer.

    A failed question counts as an empty text.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for kind in dict.fromkeys((q.request.task, q.request.language) for q in questions if not q.short):
        rows = [p for q, p in zip(questions, predictions, strict=True) if (q.request.task, q.request.language) == kind]
        for name in CHOICES:
            if name in HONEST and all(name in (p.choices or {}) for p in rows):
                texts = ["" if p.error is not None else (p.choices or {})[name] for p in rows]
                scores = captions.score(texts, [references[p.sample_id] for p in rows], kind[1])
                table.setdefault(name, {})[" ".join(kind)] = {"questions": len(rows), **scores}
    return table
