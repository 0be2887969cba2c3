"""Planted systems and scorers: they answer and score as a test says, load nothing, and remember what they were asked."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from answering.config import DecodingConfig
from answering.protocol import Answer, Candidate, Decoding, Description, ImageInput, Request

TIMEOUT_SECONDS = 240.0
"""Longest wait for an answerer to be released, in seconds."""

Say = Callable[[Request], Sequence[tuple[str, float]]]
"""Request -> texts and mean log-probabilities of its candidates, best first."""


def always(*candidates: tuple[str, float]) -> Say:
    """The same candidates for every request."""

    def say(request: Request) -> Sequence[tuple[str, float]]:
        del request
        return candidates

    return say


@dataclass
class FakeAnswerer:
    """Answers with the candidates of `say`, fails on requests in `broken`, raises KeyboardInterrupt after `interrupt_after`.

    visual_tokens: per image; None: it does not say.
    """

    say: Say
    broken: frozenset[str] = frozenset()
    interrupt_after: int | None = None
    settings: dict[str, object] = field(default_factory=dict)
    visual_tokens: int | None = None
    asked: list[str] = field(default_factory=list)
    decodings: dict[str, DecodingConfig] = field(default_factory=dict)

    @property
    def description(self) -> Description:
        return Description("checkpoint", self.settings)

    def answer(self, requests: Sequence[Request], decoding: DecodingConfig) -> list[Answer]:
        if self.interrupt_after is not None and len(self.asked) + len(requests) > self.interrupt_after:
            raise KeyboardInterrupt
        self.asked += [request.request_id for request in requests]
        self.decodings |= {request.request_id: decoding for request in requests}
        return [self._answer_request(request) for request in requests]

    def _answer_request(self, request: Request) -> Answer:
        prompt = request.messages[-1].content
        if request.request_id in self.broken:
            return Answer(request.request_id, error="the picture is upside down", prompt=prompt)
        candidates = tuple(Candidate(text, 2 * p, p, text) for text, p in self.say(request))
        visual_tokens = None if self.visual_tokens is None else self.visual_tokens * len(request.images)
        return Answer(request.request_id, candidates, prompt=prompt, visual_tokens=visual_tokens)

    def stream(self, request: Request, decoding: DecodingConfig) -> Iterator[str]:
        raise NotImplementedError


class FakeScorer:
    """Scores texts with one of the `liked` words higher. Counts the images it gets, and those with texts to score."""

    def __init__(self, *liked: str):
        self.liked, self.seen, self.scored = liked, 0, 0

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        self.seen += len(images)
        self.scored += sum(bool(group) for group in texts)
        return [[25.0 if any(word in text for word in self.liked) else 20.0 for text in group] for group in texts]

    def cosine_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        del images
        return [[0.3 if any(word in text for word in self.liked) else -0.1 for text in group] for group in texts]


class EchoAnswerer:
    """An answerer that repeats the question, held back until `released` is set. calls: the questions of each call of `answer`."""

    description = Description("fake")
    device = "cpu"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.call_started = threading.Semaphore(0)
        self.released = threading.Event()
        self.released.set()
        self.error: Exception | None = None
        self.streamed: list[str] = []

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        self.calls.append([request.messages[-1].content.replace("<image>", "").strip() for request in requests])
        self.call_started.release()
        assert self.released.wait(TIMEOUT_SECONDS)
        if self.error is not None:
            raise self.error
        return [self._answer(request, decoding) for request in requests]

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        del request, decoding
        for piece in ("one", " two", " three"):
            self.streamed.append(piece)
            yield piece
            self.call_started.release()
            assert self.released.wait(TIMEOUT_SECONDS)

    def _answer(self, request: Request, decoding: Decoding) -> Answer:
        question = request.messages[-1].content.replace("<image>", "").strip()
        if question == "impossible":
            return Answer(request.request_id, error="it cannot be answered")
        texts = [f"{question}!", *(f"{question}?" for _ in range(decoding.num_candidates > 1))]
        return Answer(request.request_id, tuple(Candidate(text, None, None, text) for text in texts))


class Recorder(EchoAnswerer):
    """An answerer that keeps the last request and its decoding, also of streams."""

    request: Request
    decoding: Decoding

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        self.request, self.decoding = requests[-1], decoding
        return super().answer(requests, decoding)

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        self.request, self.decoding = request, decoding
        return super().stream(request, decoding)
