"""The loaded models of the service, and how they answer a batch of jobs.

`Engine.work` runs in the model's thread on jobs of equal key. A `VqaTask` gets one `Reply`; a `ChatTask` gets a
`GenerationStarted`, then a `TextPiece` for each generated piece of text.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from answering.answerer_factory import ScorerCache, build_answerer, build_reranker
from answering.config import RerankConfig, System
from answering.decoding.streaming import RequestFailed, RequestStarted, TokenGenerated, stream_tokens
from answering.protocol import Answer, Answerer, Decoding, FinishReason, Request, StreamedText
from answering.reply import Reranker, judge
from answering.systems.family_answerer import FamilyAnswerer
from errors import TesseraError
from serving.http.error_responses import ServiceError
from serving.request_batcher import Job


@dataclass(frozen=True, slots=True)
class VqaTask:
    """A short-answer question. rerank: whether the candidates are reranked."""

    request: Request
    decoding: Decoding
    rerank: bool


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A conversation. stream: whether the client reads the answer as a stream."""

    request: Request
    decoding: Decoding
    stream: bool


Task: TypeAlias = VqaTask | ChatTask


@dataclass(frozen=True, slots=True)
class GenerationStarted:
    """The first event of a chat. prompt_tokens: length of the prompt; None if the system does not report it."""

    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of one sampled answer.

    Args:
        sample: index of the answer among the n of the request.
        text: text to append.
        token: text of the token, if the system streams single tokens.
        log_prob: log-probability of the token in nats.
        end: finish reason of the last piece: "stop" (end token or stop text) or "length" (token limit).
    """

    sample: int
    text: str
    token: str | None = None
    log_prob: float | None = None
    end: FinishReason | None = None


ChatEvent: TypeAlias = GenerationStarted | TextPiece


@dataclass(frozen=True)
class LoadPlan:
    """What to load.

    Args:
        name: model name that clients use.
        checkpoint_folder: folder in which `path: latest` finds the latest checkpoint.
        fitted_rerankers: rerankers that an evaluation fitted on validation data.
        decoding: the configured one, which requests may change.
    """

    name: str
    system: System
    checkpoint_folder: Path
    fitted_rerankers: Path
    rerank: RerankConfig
    decoding: Decoding


class Engine:
    """A loaded system and its reranker, if there is one. device: "remote" if the system does not run in this process."""

    def __init__(self, plan: LoadPlan, answerer: Answerer, reranker: Reranker | None):
        self.plan, self.answerer, self.reranker = plan, answerer, reranker
        self.device = str(getattr(answerer, "device", "remote"))
        self.streams_tokens = isinstance(answerer, FamilyAnswerer)

    @classmethod
    def load(cls, plan: LoadPlan, scorer_cache: ScorerCache | None = None) -> "Engine":
        """Load the system and the reranker of a plan. scorer_cache: shares CLIP models with the image search. Raises UsageError."""
        answerer = build_answerer(plan.system, checkpoint_folder=plan.checkpoint_folder)
        reranker = build_reranker(plan.rerank, answerer.description, plan.decoding, plan.fitted_rerankers, scorer_cache=scorer_cache)
        return cls(plan, answerer, reranker)

    def key(self, task: Task) -> tuple[object, ...]:
        """Tasks with equal keys can be answered in one batch."""
        if isinstance(task, VqaTask):
            return "ask", task.decoding, task.rerank
        return "chat", task.decoding, task.stream and not self.streams_tokens

    def work(self, jobs: Sequence[Job[Task]]) -> None:
        """Answer a batch of jobs of equal key."""
        first, requests = jobs[0].task, [job.task.request for job in jobs]
        decoding = dataclasses.replace(first.decoding, batch_size=len(jobs))
        if isinstance(first, VqaTask):
            self._answer_questions(jobs, requests, decoding, first.rerank)
        elif self.streams_tokens:
            self._stream_tokens(jobs, requests, decoding)
        elif first.stream and decoding.num_candidates == 1:
            for job in jobs:
                self._stream_text(job, job.task.request, decoding)
        else:
            self._answer_chats(jobs, requests, decoding)

    def _answer_questions(self, jobs: Sequence[Job[Task]], requests: list[Request], decoding: Decoding, rerank: bool) -> None:
        if isinstance(self.answerer, FamilyAnswerer):
            answers = self.answerer.answer(requests, decoding, lambda index: jobs[index].cancelled)
        else:
            answers = self.answerer.answer(requests, decoding)
        reranker = self.reranker if rerank else None
        if reranker is not None and jobs[0].task.decoding != self.plan.decoding:
            # The confidence was fitted for the configured decoding only.
            reranker = reranker.without_confidence()
        replies = judge(requests, answers, reranker, decoding.batch_size, self.answerer)
        for job, reply in zip(jobs, replies, strict=True):
            job.put(_unanswerable(reply.answer.error) if reply.answer.error else reply)

    def _stream_tokens(self, jobs: Sequence[Job[Task]], requests: list[Request], decoding: Decoding) -> None:
        """Generate all answers together. A client that does not stream gets its events at once, when its answer is complete."""
        held: dict[int, list[ChatEvent]] = {i: [] for i, job in enumerate(jobs) if not (isinstance(job.task, ChatTask) and job.task.stream)}
        left = dict.fromkeys(held, decoding.num_candidates if decoding.strategy == "sample" else 1)
        for event in stream_tokens(self.answerer, requests, decoding, lambda index: jobs[index].cancelled):  # type: ignore[arg-type]
            index = event.request_index
            if isinstance(event, RequestFailed):
                jobs[index].put(_unanswerable(event.error))
                continue
            sent = GenerationStarted(event.prompt_tokens) if isinstance(event, RequestStarted) else _text_piece(event)
            if index not in held:
                jobs[index].put(sent)
                continue
            held[index].append(sent)
            left[index] -= isinstance(sent, TextPiece) and sent.end is not None
            if not left[index]:
                jobs[index].put(*held[index])

    def _stream_text(self, job: Job[Task], request: Request, decoding: Decoding) -> None:
        try:
            job.put(GenerationStarted(None))
            pieces = StreamedText(self.answerer.stream(request, decoding))
            for text in pieces:
                if job.cancelled:
                    return
                job.put(TextPiece(0, text))
            job.put(TextPiece(0, "", end=pieces.finish_reason or "stop"))
        except TesseraError as error:
            job.put(_unanswerable(str(error)))

    def _answer_chats(self, jobs: Sequence[Job[Task]], requests: list[Request], decoding: Decoding) -> None:
        for job, answer in zip(jobs, self.answerer.answer(requests, decoding), strict=True):
            if answer.error:
                job.put(_unanswerable(answer.error))
                continue
            job.put(GenerationStarted(None))
            for sample, (text, reason) in enumerate(_samples(answer)):
                job.put(TextPiece(sample, text, end=reason))


def _text_piece(event: TokenGenerated) -> TextPiece:
    # The token that ends a text, an end token or the last of a stop text, is not part of it.
    token, log_prob = (event.token, event.log_prob) if event.end != "stop" else (None, None)
    return TextPiece(event.sample, event.text, token, log_prob, event.end)


def _samples(answer: Answer) -> list[tuple[str, FinishReason]]:
    """Raw text of each sample and why it ended; a candidate that was sampled twice is listed twice."""
    reasons: dict[int, FinishReason] = dict(enumerate(answer.finish_reasons))
    return [(candidate.raw, reasons.get(i, "stop")) for i, candidate in enumerate(answer.candidates) for _ in range(candidate.count)]


def _unanswerable(error: str) -> ServiceError:
    return ServiceError(422, error, "cannot_be_answered")
