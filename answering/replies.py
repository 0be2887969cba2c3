"""One question asked of one system: the answer, its candidates with their scores, and what is chosen.

In: requests, an answerer and, where candidates are reranked, a scorer. Out: replies that can be printed, saved and drawn.
"""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from answering.config import RerankWeights
from answering.protocol import Answer, Answerer, Decoding, Picture, Request, Scorer
from answering.rerank import choose, rerank
from answering.statements import statement
from dataset.sample import IMAGE_MARK, Language, Message, Task

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. `clip` and `fused`: a score for each candidate, where candidates were reranked."""

    question: str
    answer: Answer
    choices: dict[str, str]
    clip: tuple[float, ...] | None = None
    fused: tuple[float, ...] | None = None

    @property
    def chosen(self) -> str:
        """The reranked answer, where there is one, else the first."""
        return self.choices.get("reranked", self.choices["first"])

    def candidates(self) -> list[dict[str, Any]]:
        """Fields of each candidate and its scores."""
        signals = {name: values for name, values in (("clip", self.clip), ("fused", self.fused)) if values is not None}
        return [
            dataclasses.asdict(candidate) | {name: values[i] for name, values in signals.items()}
            for i, candidate in enumerate(self.answer.candidates)
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "question": self.question,
            "answer": None if self.answer.error else self.chosen,
            "candidates": self.candidates(),
            "choices": self.choices,
            "error": self.answer.error,
            "prompt": self.answer.prompt,
        }

    def lines(self) -> list[str]:
        """The candidates as a small table: mean log-probability over their tokens (nats), CLIP and fused score, text."""
        heads = ["mean log p", *(["CLIP", "fused"] if self.clip is not None else []), "candidate"]
        rows = []
        for i, candidate in enumerate(self.answer.candidates):
            likelihood = "-" if candidate.mean_log_prob is None else f"{candidate.mean_log_prob:.3f}"
            scores = [f"{self.clip[i]:.2f}", f"{self.fused[i]:.3f}"] if self.clip is not None and self.fused is not None else []
            rows.append([likelihood, *scores, candidate.text or "(empty)"])
        return ["  ".join([*(cell.rjust(10) for cell in row[:-1]), row[-1]]) for row in [heads, *rows]]


def question_request(request_id: str, question: str, pictures: Sequence[Picture], task: Task = "vqa") -> Request:
    """A question about pictures, which stand in front of it as in the training data; its language is read off its letters."""
    language: Language = "zh" if _CHINESE.search(question) else "en"
    marks = "".join(f"{IMAGE_MARK}\n" for _ in pictures)
    # A mark typed by hand would stand for a picture that is not there.
    return Request(request_id, tuple(pictures), (Message("user", marks + question.replace(IMAGE_MARK, " ")),), task, language)


def reply(
    answerer: Answerer, scorer: Scorer | None, weights: RerankWeights, requests: Sequence[Request], decoding: Decoding
) -> list[Reply]:
    """Ask all requests together; candidates of short answers are reranked where there is a scorer and a picture."""
    answers = answerer.answer(requests, decoding)
    return [_reply(request, answer, scorer, weights) for request, answer in zip(requests, answers, strict=True)]


def _reply(request: Request, answer: Answer, scorer: Scorer | None, weights: RerankWeights) -> Reply:
    question = request.messages[-1].content.replace(IMAGE_MARK, "").strip()
    candidates = answer.candidates
    if scorer is None or not candidates or not request.pictures or request.task != "vqa":
        return Reply(question, answer, choose(candidates, None, weights))
    texts = [statement(question, candidate.text, request.language) for candidate in candidates]
    by_picture = [scorer.score(picture, texts) for picture in request.pictures]
    clip = tuple(statistics.fmean(scores) for scores in zip(*by_picture, strict=True))
    return Reply(question, answer, choose(candidates, clip, weights), clip, rerank(candidates, clip, weights).fused)
