"""Single questions for the report: image, references, and each system's candidates and chosen answers."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from PIL import Image

from answering.rerank.choose_answer import chosen_text, displayed_choice
from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from evaluation.metrics.short_answers import PRIMARY_METRIC, vqa_accuracy
from evaluation.questions import Question
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.scoring.summary import SystemResult

RIGHT = 0.5
"""VQA accuracy from which an answer is shown as right: at least two of ten annotators gave it."""
_THUMBNAIL = 256  # pixels, longer side


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """A candidate of a question; None where the system or the scorer gives no score, or without reranking.

    raw: the generated text before cleaning. mean_log_prob: per token, in nats. fused: 0..1. accuracy: VQA accuracy. choices: names of the
    choices that chose it.
    """

    text: str
    raw: str
    mean_log_prob: float | None
    clip: float | None
    fused: float | None
    accuracy: float
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """A system's answer to a question: the displayed one (reranked, or first without reranking), the first, and the VQA accuracy of both.

    error: why the question failed. confidence: probability that the displayed answer is right. candidates: best first.
    """

    system: str
    answer: str
    first: str
    accuracy: float
    first_accuracy: float
    error: str | None
    confidence: float | None
    candidates: tuple[ShownCandidate, ...]

    @property
    def first_right(self) -> bool:
        """Whether the first candidate counts as right."""
        return self.first_accuracy >= RIGHT

    @property
    def right(self) -> bool:
        """Whether the answer counts as right."""
        return self.accuracy >= RIGHT

    @property
    def statuses(self) -> tuple[str, ...]:
        """Filter labels: right or wrong; failed; changed by reranking, and fixed or broken if the accuracy changed."""
        labels = ["right" if self.right else "wrong"]
        if self.error is not None:
            labels.append("failed")
        if self.answer != self.first:
            labels.append("changed")
            labels += ["fixed"] * (self.accuracy > self.first_accuracy) + ["broken"] * (self.accuracy < self.first_accuracy)
        return tuple(labels)


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its references (text, number of annotators) and the answer of each system."""

    question: Question
    references: tuple[tuple[str, int], ...]
    answers: tuple[ShownAnswer, ...]


def examples(evaluation_result: EvaluationResult) -> list[Example]:
    """All short questions, in the order of the evaluation."""
    return [
        Example(
            question,
            tuple(Counter(evaluation_result.references[question.sample_id]).most_common()),
            tuple(
                _answer(name, result, i, evaluation_result.references[question.sample_id])
                for name, result in evaluation_result.results.items()
            ),
        )
        for i, question in enumerate(evaluation_result.questions)
    ]


def _answer(name: str, result: SystemResult, i: int, references: Sequence[str]) -> ShownAnswer:
    """Answer of system `name` to short question `i`."""
    short = result.short
    prediction, texts = short.predictions[i], {choice: all_texts[i] for choice, all_texts in short.texts.items()}
    accuracy = {choice: float(scores[PRIMARY_METRIC][i]) for choice, scores in short.scores.items()}
    displayed = displayed_choice(texts)
    candidates = tuple(
        ShownCandidate(
            text=candidate.text,
            raw=candidate.raw,
            mean_log_prob=candidate.mean_log_prob,
            clip=prediction.clip[candidate_index] if prediction.clip else None,
            fused=prediction.fused[candidate_index] if prediction.fused else None,
            accuracy=vqa_accuracy(candidate.text, references),
            choices=tuple(
                name for name, text in texts.items() if text == chosen_text(prediction.candidates, candidate_index) and name != "random"
            ),
        )
        for candidate_index, candidate in enumerate(prediction.candidates)
    )
    scores = accuracy[displayed], accuracy["first"]
    return ShownAnswer(name, texts[displayed], texts["first"], *scores, prediction.error, prediction.confidence, candidates)


def select_examples(all_examples: Sequence[Example], limit: int) -> list[Example]:
    """Select at most `limit` examples, alternating: changed by reranking, wrong in some system, changed, right in all systems.

    At least half of them are changed ones, as long as there are enough.
    """
    changed = [e for e in all_examples if any("changed" in answer.statuses for answer in e.answers)]
    rest = [e for e in all_examples if not any("changed" in answer.statuses for answer in e.answers)]
    wrong = [e for e in rest if not all(answer.right for answer in e.answers)]
    right = [e for e in rest if all(answer.right for answer in e.answers)]
    alternating: Iterator[Example | None] = chain.from_iterable(zip_longest(changed[::2], wrong, changed[1::2], right))
    return [example for example in alternating if example is not None][:limit]


def thumbnail(image_id: int, store: SampleStore) -> Image.Image | None:
    """A small copy of an image; None if the image cannot be read."""
    try:
        image = store.load_image(image_id)
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def data_url(image: Image.Image) -> str:
    """The image as a JPEG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
