"""The questions of the validation split, with candidates, their scores and their accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from answering.protocol import ImageInput
from answering.question_types import SkippableQuestionType, skippable_question_type
from answering.rerank.candidate_scores import Signal
from evaluation.answer_selection import fill_missing_signals
from evaluation.metrics.short_answers import vqa_accuracy
from evaluation.prediction_files import Prediction
from evaluation.questions import Question


@dataclass(frozen=True, slots=True)
class ValidationExample:
    """A question of the validation split.

    Args:
        question: its text
        images: its images
        prediction: its candidates
        signals: scorer name -> scores of the candidates; zeros where a scorer gave none
        kind: its type if reranking can skip that type, else None
        accuracies: VQA accuracy [candidates]
    """

    question: str
    images: tuple[ImageInput, ...]
    prediction: Prediction
    signals: dict[str, Signal]
    kind: SkippableQuestionType | None
    accuracies: np.ndarray


def validation_examples(
    questions: Sequence[Question], predictions: Sequence[Prediction], references: Mapping[str, Sequence[str]]
) -> list[ValidationExample]:
    """The questions that did not fail, in order."""
    pairs = [(q, p) for q, p in zip(questions, fill_missing_signals(predictions), strict=True) if p.candidates]
    return [
        ValidationExample(
            question.text,
            question.request.images,
            prediction,
            prediction.signals,
            skippable_question_type(question.text, question.request.language),
            np.array([vqa_accuracy(candidate.text, references[prediction.sample_id]) for candidate in prediction.candidates]),
        )
        for question, prediction in pairs
    ]


def with_candidates(questions: Sequence[Question], predictions: Sequence[Prediction]) -> list[Question]:
    """The questions that did not fail."""
    return [question for question, prediction in zip(questions, predictions, strict=True) if prediction.candidates]
