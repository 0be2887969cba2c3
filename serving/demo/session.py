"""A system as the demo page uses it: streamed answers, candidates with their scores, and captions. Independent of gradio."""

import dataclasses
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from answering.answerer_factory import check_decoding
from answering.config import DecodingConfig, System, for_descriptions
from answering.protocol import Answerer, FinishReason, Request, StreamedText
from answering.reply import Reply, Reranker, question_request, reply
from dataset.bounding_box import Box
from dataset.sample import Message, Task
from errors import TesseraError


class Turn(NamedTuple):
    """A question and its answer.

    Args:
        confidence: probability that the answer is right; None if it is not known.
        unlike: what about the question is unlike those that the confidence was learnt from ("image", "words").
        is_cut: whether the answer ended at the largest number of tokens.
    """

    question: str
    answer: str
    task: Task = "vqa"
    confidence: float | None = None
    unlike: tuple[str, ...] = ()
    is_cut: bool = False


@dataclass(slots=True)
class Regions:
    """Boxes on the image of a conversation.

    Args:
        answered: those that the last answer names.
        marked: the one that the user draws.
        corner: its first corner in thousandths of width and height, until the second one is chosen.
    """

    answered: list[Box] = field(default_factory=list)
    marked: Box | None = None
    corner: tuple[float, float] | None = None


@dataclass(slots=True)
class Conversation:
    """The answered questions about one image; there is one object for each user of the page.

    Args:
        candidates: cells of the table of the last answer's candidates.
        number: grows with each new conversation, so that an answer to an earlier one is known to be late.
        regions: boxes on the image.
    """

    image: str | None = None
    turns: list[Turn] = field(default_factory=list)
    candidates: list[list[str]] = field(default_factory=list)
    number: int = 0
    regions: Regions = field(default_factory=Regions)

    def begin_anew(self, image: str | None) -> None:
        """Begin another conversation, about an image."""
        self.image, self.turns, self.candidates, self.number = image, [], [], self.number + 1
        self.regions = Regions()

    def turn_to(self, image: str | None) -> bool:
        """Begin another conversation if the image is another one; returns whether it is."""
        is_other = image != self.image
        if is_other:
            self.begin_anew(image)
        return is_other


@dataclass(eq=False)
class Session:
    """One system and its reranker. A lock lets one question run at a time.

    Args:
        reranker: reranks the candidates; None: the first candidate is chosen.
        decoding: settings of short answers.
        description_tokens: token limit of captions and boxes.
        system: its configuration, which says what decoding settings it can have; None: all.
    """

    name: str
    answerer: Answerer
    reranker: Reranker | None
    decoding: DecodingConfig
    description_tokens: int
    system: System | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stream(
        self, image: Path, turns: Sequence[Turn], question: str, task: Task = "vqa", changes: Mapping[str, Any] = MappingProxyType({})
    ) -> Generator[str, None, FinishReason | None]:
        """The answer so far, after each generated piece; returns why it ended, if the system says. Raises TesseraError.

        changes: decoding settings in place of the configured ones.
        """
        configured = for_descriptions(self.decoding, self.description_tokens) if task != "vqa" else self.decoding
        decoding = self._changed(configured, changes)
        text = ""
        with self._lock:
            pieces = StreamedText(self.answerer.stream(_request(image, turns, question, task), decoding))
            for piece in pieces:
                text += piece
                yield text
        return pieces.finish_reason

    def ask(self, image: Path, turns: Sequence[Turn], question: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Reply:
        """The answer to a short question, with its candidates. Raises TesseraError if the system cannot answer.

        changes: decoding settings in place of the configured ones, for which alone the confidence was fitted.
        """
        decoding = self._changed(self.decoding, changes)
        reranker = self.reranker if self.reranker is None or decoding == self.decoding else self.reranker.without_confidence()
        with self._lock:
            (answered,) = reply(self.answerer, reranker, [_request(image, turns, question, "vqa")], decoding)
        if answered.answer.error:
            raise TesseraError(answered.answer.error)
        return answered

    def _changed(self, decoding: DecodingConfig, changes: Mapping[str, Any]) -> DecodingConfig:
        """The decoding with changes. Raises UsageError if the system cannot have one of them."""
        if self.system is not None:
            check_decoding(dataclasses.replace(DecodingConfig(), **changes), [self.system])
        return dataclasses.replace(decoding, **changes)


def answered_turn(question: str, answered: Reply) -> Turn:
    """A question and the reply to it as a turn of a conversation."""
    return Turn(question, answered.chosen, "vqa", answered.confidence, answered.unlike, answered.is_cut)


def _request(image: Path, turns: Sequence[Turn], question: str, task: Task) -> Request:
    """The request for a question after earlier turns; the image is in the first turn."""
    request = question_request("demo", question, [] if turns else [image], task)
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        messages += question_request("demo", turn.question, [] if i else [image]).messages
        messages.append(Message("assistant", turn.answer))
    earlier_tasks = tuple(turn.task for turn in turns)
    return dataclasses.replace(request, images=(image,), messages=(*messages, *request.messages), earlier_tasks=earlier_tasks)
