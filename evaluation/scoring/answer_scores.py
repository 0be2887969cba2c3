"""Score chosen answers against the references, question by question."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType

import numpy as np

from answering.protocol import ImageInput
from answering.rerank.choose_answer import chosen_text
from dataset.chinese_characters import HAS_CJK
from dataset.sample import Language
from evaluation.metrics import captions
from evaluation.metrics.short_answers import METRICS, Metric, vqa_accuracy, vqa_accuracy_m4c
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.schema.answer_figures import CaptionFigures
from evaluation.scoring.question_categories import category_names

_LEADING, _TRAILING = ("first", "random", "majority", "likelihood"), ("self", "reranked", "learned", "abstaining", "oracle")
"""Display order of the choices: the leading ones, image-text scorers, the trailing ones."""
BOUND_CHOICES = frozenset({"random", "oracle"})
"""Choices that serve only as bounds: random is a lower bound, oracle (which reads the references) an upper bound."""

References = Mapping[str, Sequence[str]]
"""Sample id -> reference answers."""
Scores = dict[str, np.ndarray]
"""Metric -> scores [questions]."""
CosineFunction = Callable[[Sequence[ImageInput], Sequence[Sequence[str]]], list[list[float]]]
"""(images, texts of each image) -> cosine of each image with each of its own texts."""

FORMAT_SENSITIVE_METRICS: dict[str, Metric] = {name: METRICS[name] for name in ("vqa_accuracy", "vqa_accuracy_m4c", "exact")}
"""Metrics whose sensitivity to the format of an answer is reported."""
CLIP_PROMPT = "A photo depicts "
"""Prefix of an English caption in CLIPScore (Hessel et al. 2021, section 3)."""


def sort_choices(choices: Iterable[str]) -> list[str]:
    """Choices in display order; any name that is not a fixed choice belongs to an image-text scorer."""
    names = list(choices)
    scorers = [name for name in names if name not in (*_LEADING, *_TRAILING)]
    return [name for name in (*_LEADING, *scorers, *_TRAILING) if name in names]


ANSWER_FORMATS: dict[str, Callable[[str], str]] = {
    "capitalised": lambda text: text[:1].upper() + text[1:],
    "full_stop": lambda text: text + ("。" if HAS_CJK.search(text) else "."),
}
"""Other formats of the same answer; the score difference they cause is an effect of the metric, not of the system."""


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """A system's short answers: predictions[i], texts[choice][i] and scores[choice][metric][i] of question i."""

    predictions: list[Prediction]
    texts: dict[str, list[str]]
    scores: dict[str, Scores]


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """Caption metrics of a system: figures[choice]["caption en"] and per_sample[sample_id][choice][metric]."""

    figures: dict[str, dict[str, CaptionFigures]]
    per_sample: dict[str, dict[str, dict[str, float]]]


def masks_by_kind(questions: Sequence[Question]) -> list[dict[str, np.ndarray]]:
    """Masks [questions] of each category, of each language and of each source that occurs, by its name, in display order."""
    sources = [question.source for question in questions]
    labels_in_order = (
        ([question.category for question in questions], category_names()),
        ([question.request.language for question in questions], ["en", "zh"]),
        (sources, sorted(set(sources))),
    )
    return [{name: np.array(labels) == name for name in order if name in labels} for labels, order in labels_in_order]


def oracle(prediction: Prediction, references: Sequence[str]) -> str:
    """The candidate with the highest accuracy, chosen with the references: an upper bound for any reranking, not a method."""
    scores = [(vqa_accuracy(c.text, references), vqa_accuracy_m4c(c.text, references)) for c in prediction.candidates]
    return chosen_text(prediction.candidates, scores.index(max(scores)) if scores else 0)


def score(predictions: Sequence[Prediction], references: References) -> AnswerScores:
    """Score every choice of predictions of short questions. A failed question counts as wrong."""
    texts = {
        name: [(p.choices or {})[name] for p in predictions] for name in sort_choices((predictions[0].choices or {}) if predictions else ())
    }
    if predictions:
        texts["oracle"] = [oracle(p, references[p.sample_id]) for p in predictions]
    scores = {name: _scores(predictions, chosen, references, METRICS) for name, chosen in texts.items()}
    return AnswerScores(list(predictions), texts, scores)


def format_sensitivity(short: AnswerScores, references: References) -> dict[str, dict[str, dict[str, float]]]:
    """Mean scores of the first and of the reranked answers in other formats: [choice][format][metric]."""
    return {
        choice: {
            form: {
                metric: float(values.mean())
                for metric, values in _scores(
                    short.predictions, list(map(rewrite, short.texts[choice])), references, FORMAT_SENSITIVE_METRICS
                ).items()
            }
            for form, rewrite in ANSWER_FORMATS.items()
        }
        for choice in ("first", "reranked")
        if choice in short.texts
    }


def answer_accuracy(prediction: Prediction, text: str, references: References) -> float:
    """VQA accuracy of an answer; 0 for a failed question."""
    return 0.0 if prediction.error is not None else vqa_accuracy(text, references[prediction.sample_id])


def _scores(predictions: Sequence[Prediction], texts: Sequence[str], references: References, metrics: Mapping[str, Metric]) -> Scores:
    return {
        name: np.array(
            [0.0 if p.error is not None else metric(text, references[p.sample_id]) for p, text in zip(predictions, texts, strict=True)]
        )
        for name, metric in metrics.items()
    }


def caption_scores(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    references: References,
    cosines: Mapping[Language, CosineFunction] = MappingProxyType({}),
) -> CaptionResult:
    """Caption metrics by choice and by task and language ("caption en"), over the questions without short answers and without boxes.

    A language with several tokenisations has an entry for each ("caption zh", "caption zh jieba"). A failed question counts as an
    empty text.

    Args:
        questions: all questions
        predictions: their predictions, in the same order
        references: reference answers by sample id
        cosines: by language, the cosine function for CLIPScore; other languages have no CLIPScore
    """
    result = CaptionResult({}, {})
    for task, language in dict.fromkeys((q.request.task, q.request.language) for q in questions if not (q.short or q.asks_for_box)):
        rows = [(q, p) for q, p in zip(questions, predictions, strict=True) if (q.request.task, q.request.language) == (task, language)]
        for name in sort_choices(name for name in rows[0][1].choices or {} if all(name in (p.choices or {}) for _, p in rows)):
            if name not in BOUND_CHOICES:
                texts = ["" if p.error is not None else (p.choices or {})[name] for _, p in rows]
                _add_captions(result, f"{task} {language}", name, rows, texts, references)
                if language in cosines:
                    _add_clip_scores(result, f"{task} {language}", name, rows, texts, cosines[language])
    return result


Rows = Sequence[tuple[Question, Prediction]]
"""Questions of one task and language, with their predictions."""


def _add_captions(result: CaptionResult, kind: str, choice: str, rows: Rows, texts: Sequence[str], references: References) -> None:
    for i, tokenisation in enumerate(captions.TOKENISATIONS[rows[0][0].request.language]):
        scored = captions.score(texts, [references[p.sample_id] for _, p in rows], tokenisation)
        label, suffix = (kind, "") if i == 0 else (f"{kind} {tokenisation}", f"_{tokenisation}")
        result.figures.setdefault(choice, {})[label] = CaptionFigures(len(rows), **scored.corpus)
        for index, (question, _) in enumerate(rows):
            sample_scores = result.per_sample.setdefault(question.sample_id, {}).setdefault(choice, {})
            sample_scores |= {f"{metric}{suffix}": float(values[index]) for metric, values in scored.per_sample.items()}


def _add_clip_scores(result: CaptionResult, kind: str, choice: str, rows: Rows, texts: Sequence[str], cosines: CosineFunction) -> None:
    """CLIPScore from the mean cosine over a question's images; 0 for questions without images and for empty texts."""
    images = [(i, image) for i, (q, _) in enumerate(rows) if texts[i] for image in q.request.images]
    prefix = CLIP_PROMPT if rows[0][0].request.language == "en" else ""
    by_row: list[list[float]] = [[] for _ in rows]
    for (i, _), (value,) in zip(images, cosines([p for _, p in images], [[prefix + texts[i]] for i, _ in images]), strict=True):
        by_row[i].append(value)
    values = captions.clip_score([fmean(group) if group else 0.0 for group in by_row])
    result.figures[choice][kind] = replace(result.figures[choice][kind], clip_score=float(values.mean()))
    for value, (question, _) in zip(values, rows, strict=True):
        result.per_sample[question.sample_id][choice]["clip_score"] = float(value)


def score_lines(questions: Sequence[Question], short: AnswerScores, others: Mapping[str, dict[str, dict[str, float]]]) -> list[str]:
    """Lines of scores/<system>.jsonl: one JSON object per question, with every metric of every choice at full precision.

    others: sample id -> choice -> metric -> score, of the questions without short answers.
    """
    lines = []
    index = {prediction.sample_id: i for i, prediction in enumerate(short.predictions)}
    for question in questions:
        if question.short:
            i = index[question.sample_id]
            scores = {choice: {name: float(values[i]) for name, values in table.items()} for choice, table in short.scores.items()}
        else:
            scores = others[question.sample_id]
        lines.append(json.dumps({"sample_id": question.sample_id, "category": question.category, "scores": scores}, ensure_ascii=False))
    return lines
