"""Responses of chat completions: the whole answer, or its chunks as server-sent events."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serving.engine import GenerationStarted, TextPiece


@dataclass
class Completion:
    """One completion in progress.

    Args:
        model: model name in the response.
        n: number of answers.
        logprobs: whether log-probabilities are returned.
        usage: whether a stream ends with the token counts.
        metadata: that of the request, returned with the answer.
        id: id of the completion.
        created: time in seconds since the epoch.
        prompt_tokens: length of the prompt; None if the system does not report it.
        tokens: number of generated tokens so far.
    """

    model: str
    n: int
    logprobs: bool
    usage: bool
    metadata: dict[str, str] | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int | None = None
    tokens: int = 0

    def common_fields(self, kind: str) -> dict[str, Any]:
        """The fields of every response and every chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage_counts(self) -> dict[str, int] | None:
        """Token counts of prompt and answers; None if the system does not report them."""
        if self.prompt_tokens is None:
            return None
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    def to_response(self, events: list[GenerationStarted | TextPiece]) -> dict[str, Any]:
        """The completion as one response."""
        pieces = list(self.count_tokens(events))
        return {
            **self.common_fields("chat.completion"),
            "choices": [self._choice(i, pieces) for i in range(self.n)],
            "usage": self.usage_counts(),
            **({} if self.metadata is None else {"metadata": self.metadata}),
        }

    def count_tokens(self, events: list[GenerationStarted | TextPiece]) -> Iterator[TextPiece]:
        """The text pieces of the events, counted as tokens."""
        for event in events:
            if isinstance(event, GenerationStarted):
                self.prompt_tokens = event.prompt_tokens
            else:
                self.tokens += 1
                yield event

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        """One chunk as a server-sent event."""
        chunk = {**self.common_fields("chat.completion.chunk"), "choices": choices}
        return server_sent_event({**chunk, "usage": usage} if self.usage else chunk)

    def first_chunk(self) -> str:
        """The first chunk: the role of each answer."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self.n)])

    def piece_chunks(self, piece: TextPiece) -> Iterator[str]:
        """The chunks of a text piece."""
        if piece.text or (self.logprobs and piece.token is not None):
            logprobs = {"content": _logprobs([piece]), "refusal": None} if self.logprobs else None
            delta = {"content": piece.text}
            yield self.chunk([{"index": piece.sample, "delta": delta, "logprobs": logprobs, "finish_reason": None}])
        if piece.end:
            yield self.chunk([{"index": piece.sample, "delta": {}, "logprobs": None, "finish_reason": piece.end}])

    def _choice(self, sample: int, pieces: list[TextPiece]) -> dict[str, Any]:
        sample_pieces = [piece for piece in pieces if piece.sample == sample]
        return {
            "index": sample,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in sample_pieces), "refusal": None},
            "logprobs": {"content": _logprobs(sample_pieces), "refusal": None} if self.logprobs else None,
            "finish_reason": next((piece.end for piece in sample_pieces if piece.end), None),
        }


def _logprobs(pieces: list[TextPiece]) -> list[dict[str, Any]]:
    return [
        {
            "token": piece.token,
            "logprob": piece.log_prob,
            # A token may be part of a multi-byte character.
            "bytes": None if "\ufffd" in piece.token else list(piece.token.encode()),
            "top_logprobs": [],
        }
        for piece in pieces
        if piece.token is not None
    ]


def server_sent_event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
