"""Single questions as the reports show them: picture, references, and each system's candidates and choices."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from PIL import Image

from answering.rerank.choose_answer import chosen_text, shown_choice
from dataset.loading.image_io import PictureError
from dataset.loading.sample_store import Store
from evaluation.metrics.short_answers import METRIC, vqa_accuracy
from evaluation.questions import Question
from evaluation.run.evaluation_run import Outcome
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
    credibility: float | None
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


def examples(outcome: Outcome) -> list[Example]:
    """Every short question, in the order in which it was asked."""
    return [
        Example(
            question,
            tuple(Counter(outcome.references[question.sample_id]).most_common()),
            tuple(_answer(name, result, i, outcome.references[question.sample_id]) for name, result in outcome.results.items()),
        )
        for i, question in enumerate(outcome.questions)
    ]


def _answer(name: str, result: SystemResult, i: int, references: Sequence[str]) -> ShownAnswer:
    short = result.short
    prediction, texts = short.predictions[i], {choice: all_texts[i] for choice, all_texts in short.texts.items()}
    accuracy = {choice: float(scores[METRIC][i]) for choice, scores in short.scores.items()}
    shown = shown_choice(texts)
    candidates = tuple(
        ShownCandidate(
            text=candidate.text,
            raw=candidate.raw,
            mean_log_prob=candidate.mean_log_prob,
            clip=prediction.clip[place] if prediction.clip else None,
            fused=prediction.fused[place] if prediction.fused else None,
            accuracy=vqa_accuracy(candidate.text, references),
            choices=tuple(name for name, text in texts.items() if text == chosen_text(prediction.candidates, place) and name != "random"),
        )
        for place, candidate in enumerate(prediction.candidates)
    )
    scores = accuracy[shown], accuracy["first"]
    return ShownAnswer(name, texts[shown], texts["first"], *scores, prediction.error, prediction.credibility, candidates)


def selection(every: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` examples: by turns one that reranking changed, one that some system got wrong, another changed one, one
    that all got right. So at least half are changed ones while there are any."""
    changed = [e for e in every if any("changed" in answer.statuses for answer in e.answers)]
    rest = [e for e in every if not any("changed" in answer.statuses for answer in e.answers)]
    wrong = [e for e in rest if not all(answer.right for answer in e.answers)]
    right = [e for e in rest if all(answer.right for answer in e.answers)]
    turns: Iterator[Example | None] = chain.from_iterable(zip_longest(changed[::2], wrong, changed[1::2], right))
    return [example for example in turns if example is not None][:limit]


def thumbnail(image_id: int, store: Store) -> Image.Image | None:
    """A small copy of a picture; None when it can no longer be read, which the failed question says too."""
    try:
        picture = store.picture(image_id)
    except PictureError:
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG within a page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
