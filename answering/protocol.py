"""The types of requests and answers, and the interface of an answerer. None of them has a field for a reference answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from answering.config import DecodingConfig
from dataset.remote_files import FilePath
from dataset.sample import Language, Message, Task, question_text

Decoding: TypeAlias = DecodingConfig

FinishReason = Literal["stop", "length"]
"""Why an answer ended: at an end token or a stop text, or at the largest number of tokens."""

ImageInput = Image.Image | FilePath
"""A decoded image, or a file, local or at a URL of object storage, that is opened when it is needed."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question about images.

    Args:
        request_id: the answer has the same; it also seeds sampling.
        images: in the order of their placeholders.
        messages: the conversation; it ends with a user turn and has one `<image>` per image.
        task: kind of the last question; only `vqa` gets the short-answer prompt.
        language: of the prompt and of templates.
        earlier_tasks: kinds of the earlier questions; by default all are of the last one's.
        with_prompts: False asks the messages exactly as they are, without the prompts of the system.
    """

    request_id: str
    images: tuple[ImageInput, ...]
    messages: tuple[Message, ...]
    task: Task = "vqa"
    language: Language = "en"
    earlier_tasks: tuple[Task, ...] = ()
    with_prompts: bool = True

    @property
    def question(self) -> str:
        """The text of the last user turn, without image placeholders."""
        return question_text(self.messages[-1].content)

    @property
    def short(self) -> bool:
        """Whether a short answer is expected; captions and descriptions have their own metrics."""
        return self.task == "vqa"

    def kinds(self) -> Iterator[Task]:
        """The kind of each user turn."""
        num_earlier = sum(turn.role == "user" for turn in self.messages) - 1
        return iter((*(self.earlier_tasks or (self.task,) * num_earlier), self.task))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible answer.

    Args:
        text: the answer after cleaning.
        log_prob: sum over the generated tokens including the end token, in nats, under the model alone: whatever penalties, temperature,
            top_k or top_p do; None if an endpoint returns none.
        mean_log_prob: log_prob / number of tokens.
        raw: the generated text before cleaning.
        count: number of generations that were merged into this candidate.
    """

    text: str
    log_prob: float | None
    mean_log_prob: float | None
    raw: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Candidates, best first and distinct after normalisation; or an error message and no candidates.

    prompt: its text as the model received it. visual_tokens: positions that the request's images take in the language model's input; None
    if the system does not say. finish_reasons: why each candidate ended; empty if the system does not say.
    """

    request_id: str
    candidates: tuple[Candidate, ...] = ()
    error: str | None = None
    prompt: str = ""
    visual_tokens: int | None = None
    finish_reasons: tuple[FinishReason, ...] = ()

    @property
    def first(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Description:
    """Describes a system in predictions and reports: kind, paths, quantisation, prompt policy."""

    kind: str
    settings: dict[str, object] = field(default_factory=dict)


class Answerer(Protocol):
    """A system that answers requests. An invalid request gives an Answer with an error; the others are still answered."""

    @property
    def description(self) -> Description: ...

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """One Answer per request, in the order of the requests."""
        ...

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """Pieces of the greedy (or first sampled) answer as they are generated. A generator may return a FinishReason."""
        ...


@runtime_checkable
class ReplaysCudaGraphs(Protocol):
    """An answerer whose decoding steps may be replayed as CUDA graphs."""

    @property
    def cuda_graphs_error(self) -> str | None:
        """Why decoding steps are not replayed although they should be; None if nothing failed."""
        ...


class StreamedText:
    """Iterates over the pieces of a text. Afterwards `finish_reason` says why it ended; None if the generator of pieces returns nothing."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces = pieces
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                piece = next(self._pieces)
            except StopIteration as end:
                self.finish_reason = end.value
                return
            yield piece
