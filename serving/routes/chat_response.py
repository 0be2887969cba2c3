"""Responses of chat completions: the whole answer, or its chunks as server-sent events."""

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from serving.engine import ChatEvent, GenerationStarted, TextPiece
from serving.routes.chat_schema import ChatRequest


class Completion:
    """One completion in progress. is_greedy: whether one answer is generated, which is repeated for all that were asked for."""

    def __init__(self, request: ChatRequest, *, is_greedy: bool):
        self.request, self.n, self.is_greedy = request, request.n or 1, is_greedy
        self.has_usage_chunk = request.stream_options is not None and request.stream_options.include_usage
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.prompt_tokens: int | None = None
        self.num_tokens = 0

    def common_fields(self, kind: str) -> dict[str, Any]:
        """The fields of every response and every chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def usage_counts(self) -> dict[str, int] | None:
        """Token counts of prompt and answers; None if the system does not report them."""
        if self.prompt_tokens is None:
            return None
        total = self.prompt_tokens + self.num_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.num_tokens, "total_tokens": total}

    def pieces(self, event: ChatEvent) -> list[TextPiece]:
        """The text pieces of an event, counted as tokens; that of a greedy answer is repeated for all n answers."""
        if isinstance(event, GenerationStarted):
            self.prompt_tokens = event.prompt_tokens
            return []
        copies = self.n if self.is_greedy else 1
        self.num_tokens += copies
        return [dataclasses.replace(event, sample=event.sample + copy) for copy in range(copies)]

    def to_response(self, pieces: list[TextPiece]) -> dict[str, Any]:
        """The completion as one response."""
        return {
            **self.common_fields("chat.completion"),
            "choices": [self._choice(i, pieces) for i in range(self.n)],
            "usage": self.usage_counts(),
            **({} if self.request.metadata is None else {"metadata": self.request.metadata}),
        }

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        """One chunk as a server-sent event."""
        chunk = {**self.common_fields("chat.completion.chunk"), "choices": choices}
        return server_sent_event({**chunk, "usage": usage} if self.has_usage_chunk else chunk)

    def first_chunk(self) -> str:
        """The first chunk: the role of each answer."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self.n)])

    def chunks(self, event: ChatEvent) -> Iterator[str]:
        """The chunks of an event."""
        for piece in self.pieces(event):
            choice = {"index": piece.sample, "delta": {"content": piece.text}, "logprobs": self._logprobs([piece]), "finish_reason": None}
            if piece.text or (self.request.logprobs and piece.token is not None):
                yield self.chunk([choice])
            if piece.end:
                yield self.chunk([{**choice, "delta": {}, "logprobs": None, "finish_reason": piece.end}])

    def _choice(self, sample: int, pieces: list[TextPiece]) -> dict[str, Any]:
        sample_pieces = [piece for piece in pieces if piece.sample == sample]
        return {
            "index": sample,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in sample_pieces), "refusal": None},
            "logprobs": self._logprobs(sample_pieces),
            "finish_reason": next((piece.end for piece in sample_pieces if piece.end), None),
        }

    def _logprobs(self, pieces: list[TextPiece]) -> dict[str, Any] | None:
        """Log-probabilities of the tokens, if they were asked for; a token that is part of a multi-byte character has no bytes."""
        tokens = [(piece.token, piece.log_prob) for piece in pieces if piece.token is not None]
        content = [
            {"token": token, "logprob": log_prob, "bytes": None if "\ufffd" in token else list(token.encode()), "top_logprobs": []}
            for token, log_prob in tokens
        ]
        return {"content": content, "refusal": None} if self.request.logprobs else None


def server_sent_event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
