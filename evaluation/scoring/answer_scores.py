"""Scores of choices, question by question: here, and only here, answers meet references."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

import numpy as np

from answering.protocol import ImageInput
from answering.rerank.choose_answer import chosen_text
from dataset.sample import Language
from evaluation.metrics import captions
from evaluation.metrics.chinese_characters import HAS_CJK
from evaluation.metrics.short_answers import METRICS, Metric, vqa_accuracy, vqa_accuracy_m4c
from evaluation.metrics.unanswerable import unanswerable_metrics
from evaluation.prediction_files import Prediction
from evaluation.questions import Question

_LEADING, _TRAILING = ("first", "random", "majority", "likelihood"), ("self", "reranked", "learned", "abstaining", "oracle")
"""Ways of choosing in the order in which they are shown: these, then picture scorers, then those."""
BOUND_CHOICES = frozenset({"random", "oracle"})
"""Choices that nobody could use: random is a floor, the oracle looks at the references."""

References = Mapping[str, Sequence[str]]
Scores = dict[str, np.ndarray]
"""Metric -> score of each question."""
CosineFunction = Callable[[Sequence[ImageInput], Sequence[Sequence[str]]], list[list[float]]]
"""Cosine of each picture with each of its own texts."""

FORMAT_SENSITIVE_METRICS: dict[str, Metric] = {name: METRICS[name] for name in ("vqa_accuracy", "vqa_accuracy_m4c", "exact")}
"""Metrics whose sensitivity to the form of an answer is shown."""
CLIP_PROMPT = "A photo depicts "
"""What stands before an English caption in CLIPScore (Hessel et al. 2021, section 3)."""


def sort_choices(choices: Iterable[str]) -> list[str]:
    """Choices in the order in which they are shown; picture scorers, whose names are the user's, stand in the middle."""
    names = list(choices)
    scorers = [name for name in names if name not in (*_LEADING, *_TRAILING)]
    return [name for name in (*_LEADING, *scorers, *_TRAILING) if name in names]


ANSWER_FORMATS: dict[str, Callable[[str], str]] = {
    "capitalised": lambda text: text[:1].upper() + text[1:],
    "full_stop": lambda text: text + ("。" if HAS_CJK.search(text) else "."),
}
"""Ways of writing the same answer: how far they move a score is the metric's doing, not the system's."""


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Short answers of a system: texts[choice][i] and scores[choice][metric][i] for its i-th short question.

    forms[choice][form][metric][i]: accuracies of the same answers written otherwise, for the choices `first` and `reranked`.
    unanswerable: how well it tells questions without an answer; None where there are none.
    """

    predictions: list[Prediction]
    texts: dict[str, list[str]]
    scores: dict[str, Scores]
    forms: dict[str, dict[str, Scores]]
    unanswerable: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """Caption metrics of a system. means[choice]["caption en"][metric]; each[sample_id][choice][metric]."""

    means: dict[str, dict[str, dict[str, float]]]
    per_sample: dict[str, dict[str, dict[str, float]]]


def oracle(prediction: Prediction, references: Sequence[str]) -> str:
    """The candidate that scores best: what a perfect choice could reach. It looks at the references and is no result."""
    scores = [(vqa_accuracy(c.text, references), vqa_accuracy_m4c(c.text, references)) for c in prediction.candidates]
    return chosen_text(prediction.candidates, scores.index(max(scores)) if scores else 0)


def score(predictions: Sequence[Prediction], references: References) -> AnswerScores:
    """Score every choice of the predictions, which are of short answers. A failed question counts as wrong."""
    texts = {
        name: [(p.choices or {})[name] for p in predictions] for name in sort_choices((predictions[0].choices or {}) if predictions else ())
    }
    if predictions:
        texts["oracle"] = [oracle(p, references[p.sample_id]) for p in predictions]
    forms: dict[str, dict[str, Scores]] = {
        name: {
            form: _scores(predictions, [write(text) for text in texts[name]], references, FORMAT_SENSITIVE_METRICS)
            for form, write in ANSWER_FORMATS.items()
        }
        for name in texts
        if name in ("first", "reranked")
    }
    scores = {name: _scores(predictions, chosen, references, METRICS) for name, chosen in texts.items()}
    return AnswerScores(list(predictions), texts, scores, forms, unanswerable_metrics(predictions, references))


def answer_accuracy(prediction: Prediction, text: str, references: References) -> float:
    """Official accuracy of an answer; 0 for a failed question, whatever the references say."""
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
    """Caption metrics by choice and by task and language ("caption en"), over questions that want no short answer.

    A language that is cut into tokens in several ways has an entry for each ("caption zh", "caption zh jieba"). A failed
    question counts as an empty text. cosines: in the languages that have them, each text has a CLIPScore too.
    """
    result = CaptionResult({}, {})
    for task, language in dict.fromkeys((q.request.task, q.request.language) for q in questions if not q.short):
        rows = [(q, p) for q, p in zip(questions, predictions, strict=True) if (q.request.task, q.request.language) == (task, language)]
        for name in sort_choices(name for name in rows[0][1].choices or {} if all(name in (p.choices or {}) for _, p in rows)):
            if name not in BOUND_CHOICES:
                texts = ["" if p.error is not None else (p.choices or {})[name] for _, p in rows]
                _add_captions(result, f"{task} {language}", name, rows, texts, references)
                if language in cosines:
                    _add_clip_scores(result, f"{task} {language}", name, rows, texts, cosines[language])
    return result


Rows = Sequence[tuple[Question, Prediction]]


def _add_captions(result: CaptionResult, kind: str, choice: str, rows: Rows, texts: Sequence[str], references: References) -> None:
    for i, tokenisation in enumerate(captions.TOKENISATIONS[rows[0][0].request.language]):
        scored = captions.score(texts, [references[p.sample_id] for _, p in rows], tokenisation)
        label, suffix = (kind, "") if i == 0 else (f"{kind} {tokenisation}", f"_{tokenisation}")
        result.means.setdefault(choice, {})[label] = {"questions": len(rows), **scored.corpus}
        for index, (question, _) in enumerate(rows):
            own = result.per_sample.setdefault(question.sample_id, {}).setdefault(choice, {})
            own |= {f"{metric}{suffix}": float(values[index]) for metric, values in scored.per_sample.items()}


def _add_clip_scores(result: CaptionResult, kind: str, choice: str, rows: Rows, texts: Sequence[str], cosines: CosineFunction) -> None:
    """The mean over a question's pictures; questions without a picture, and empty texts, have 0."""
    images = [(i, image) for i, (q, _) in enumerate(rows) if texts[i] for image in q.request.images]
    prefix = CLIP_PROMPT if rows[0][0].request.language == "en" else ""
    found: list[list[float]] = [[] for _ in rows]
    for (i, _), (value,) in zip(images, cosines([p for _, p in images], [[prefix + texts[i]] for i, _ in images]), strict=True):
        found[i].append(value)
    values = captions.clip_score([fmean(group) if group else 0.0 for group in found])
    result.means[choice][kind]["clip_score"] = float(values.mean())
    for value, (question, _) in zip(values, rows, strict=True):
        result.per_sample[question.sample_id][choice]["clip_score"] = float(value)


def score_lines(questions: Sequence[Question], short: AnswerScores, described: CaptionResult) -> list[str]:
    """One JSON line a question, with every metric of every choice at full precision."""
    lines = []
    index = {prediction.sample_id: i for i, prediction in enumerate(short.predictions)}
    for question in questions:
        if question.short:
            i = index[question.sample_id]
            scores = {choice: {name: float(values[i]) for name, values in table.items()} for choice, table in short.scores.items()}
        else:
            scores = described.per_sample[question.sample_id]
        lines.append(json.dumps({"sample_id": question.sample_id, "category": question.category, "scores": scores}, ensure_ascii=False))
    return lines
