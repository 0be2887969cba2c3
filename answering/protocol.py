"""What passes between questions and answers. Nothing here has a place for a reference answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image

from answering.config import DecodingConfig
from dataset.sample import Language, Message, Task

Decoding: TypeAlias = DecodingConfig

ImageInput = Image.Image | Path
"""A decoded picture, or a file that is opened when its turn comes."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question about pictures: `messages` ends with a user turn and holds one `<image>` a picture, in order.

    `task` and `language` choose the prompt policy: the short-answer suffix belongs to `vqa` alone.
    """

    request_id: str
    images: tuple[ImageInput, ...]
    messages: tuple[Message, ...]
    task: Task = "vqa"
    language: Language = "en"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible answer. `log_prob` is the sum over its generated tokens, end token included, in nats; None where an
    endpoint gives none. `mean_log_prob` is log_prob / tokens. `raw` is the generated text before cleaning. `count` is
    how many generations said it: those that were merged into it."""

    text: str
    log_prob: float | None
    mean_log_prob: float | None
    raw: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Candidates, best first and distinct after normalisation; or an error with its reason and no candidates.

    `prompt` is the text that the model was really given.
    """

    request_id: str
    candidates: tuple[Candidate, ...] = ()
    error: str | None = None
    prompt: str = ""

    @property
    def first(self) -> Candidate:
        """The head of the merged list."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Description:
    """What a system is, for predictions and reports: kind, paths, quantisation, prompt policy."""

    kind: str
    settings: dict[str, object] = field(default_factory=dict)


class Answerer(Protocol):
    """A system that answers. One bad request is an Answer with an error; the others are still answered."""

    @property
    def description(self) -> Description: ...

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """One Answer for each request, in their order."""
        ...

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """Pieces of the greedy (or sampled) answer as they are generated."""
        ...


@runtime_checkable
class ReplaysCudaGraphs(Protocol):
    """An answerer whose decoding steps may be replayed as CUDA graphs."""

    @property
    def cuda_graphs_error(self) -> str | None:
        """Why steps that were to be replayed are not; None where nothing went wrong."""
        ...
