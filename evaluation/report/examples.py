"""Single questions as the reports show them: picture, references, and each system's candidates and choices."""

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
"""An answer is shown as right from this official accuracy on: two of ten annotators gave it."""
_THUMBNAIL = 256  # pixels, longer side


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """A candidate with its scores, what it would have scored, and the choices that took it."""

    text: str
    raw: str
    mean_log_prob: float | None
    clip: float | None
    fused: float | None
    accuracy: float
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What a system made of a question. `answer` is its reranked one, or the first where nothing is reranked; `credibility`: how
    likely that is right, where it is known."""

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
        """right or wrong; failed; changed by the rerank, and fixed or broken by it."""
        found = ["right" if self.right else "wrong"]
        if self.error is not None:
            found.append("failed")
        if self.answer != self.first:
            found.append("changed")
            found += ["fixed"] * (self.accuracy > self.first_accuracy) + ["broken"] * (self.accuracy < self.first_accuracy)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Example:
    """A question with what all systems made of it. `references`: text and how many annotators gave it."""

    question: Question
    references: tuple[tuple[str, int], ...]
    answers: tuple[ShownAnswer, ...]


def examples(evaluation_result: EvaluationResult) -> list[Example]:
    """Every short question, in the order in which it was asked."""
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
    """At most `limit` examples: by turns one that reranking changed, one that some system got wrong, another changed one, one
    that all got right. So at least half are changed ones while there are any."""
    changed = [e for e in all_examples if any("changed" in answer.statuses for answer in e.answers)]
    rest = [e for e in all_examples if not any("changed" in answer.statuses for answer in e.answers)]
    wrong = [e for e in rest if not all(answer.right for answer in e.answers)]
    right = [e for e in rest if all(answer.right for answer in e.answers)]
    alternating: Iterator[Example | None] = chain.from_iterable(zip_longest(changed[::2], wrong, changed[1::2], right))
    return [example for example in alternating if example is not None][:limit]


def thumbnail(image_id: int, store: SampleStore) -> Image.Image | None:
    """A small copy of a picture; None when it can no longer be read, which the failed question says too."""
    try:
        image = store.load_image(image_id)
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def data_url(image: Image.Image) -> str:
    """The picture as a JPEG within a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
