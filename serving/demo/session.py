"""A system as the demo page uses it: streamed answers, candidates with their scores, and captions. Independent of gradio."""

import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from answering.config import DecodingConfig
from answering.protocol import Answerer, Request
from answering.reply import Reply, Reranker, question_request, reply
from dataset.sample import Message, Task
from errors import TesseraError


class Turn(NamedTuple):
    """A question and its answer. task: kind of the question."""

    question: str
    answer: str
    task: Task = "vqa"


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """A candidate as the page shows it. likelihood: its probability, 0..1; a score is None if the system does not report it."""

    chosen: bool
    text: str
    likelihood: float | None
    clip: float | None
    fused: float | None


class Session:
    """One system and its reranker. A lock lets one question run at a time.

    Args:
        name: name of the system.
        answerer: the loaded system.
        reranker: reranks the candidates; None: the first candidate is chosen.
        decoding: settings of short answers.
        description_tokens: token limit of captions.
    """

    def __init__(self, name: str, answerer: Answerer, reranker: Reranker | None, decoding: DecodingConfig, description_tokens: int):
        self.name, self.answerer, self.reranker, self.decoding = name, answerer, reranker, decoding
        self.description_decoding = dataclasses.replace(decoding, max_new_tokens=description_tokens)
        self._lock = threading.Lock()

    def stream(self, image: Path, turns: Sequence[Turn], question: str, task: Task = "vqa") -> Iterator[str]:
        """The answer so far, after each generated piece. Raises TesseraError."""
        decoding = self.description_decoding if task == "caption" else self.decoding
        text = ""
        with self._lock:
            for piece in self.answerer.stream(_request(image, turns, question, task), decoding):
                text += piece
                yield text

    def ask(self, image: Path, turns: Sequence[Turn], question: str) -> Reply:
        """The answer to a short question, with its candidates. Raises TesseraError if the system cannot answer."""
        with self._lock:
            (answered,) = reply(self.answerer, self.reranker, [_request(image, turns, question, "vqa")], self.decoding)
        if answered.answer.error:
            raise TesseraError(answered.answer.error)
        return answered


def candidate_rows(answered: Reply) -> list[CandidateRow]:
    """The candidates of an answer, sorted by fused score; the chosen one is marked."""
    rows = [
        CandidateRow(
            candidate["text"].strip() == answered.chosen,
            candidate["text"],
            None if candidate["log_prob"] is None else math.exp(candidate["log_prob"]),
            candidate.get("clip"),
            candidate.get("fused"),
        )
        for candidate in answered.candidates()
    ]
    return sorted(rows, key=lambda row: -(row.fused if row.fused is not None else 0.0))


def _request(image: Path, turns: Sequence[Turn], question: str, task: Task) -> Request:
    """The request for a question after earlier turns; the image is in the first turn."""
    request = question_request("demo", question, [] if turns else [image], task)
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        messages += question_request("demo", turn.question, [] if i else [image]).messages
        messages.append(Message("assistant", turn.answer))
    earlier_tasks = tuple(turn.task for turn in turns)
    return dataclasses.replace(request, images=(image,), messages=(*messages, *request.messages), earlier_tasks=earlier_tasks)
