"""Answers token by token, for many requests at once: what a service that streams shows its clients."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from answering.decoding.sampling import decode_steps
from answering.protocol import Answerer, Decoding, Request
from answering.systems.local_model import IncrementalDetokenizer, LocalAnswerer, Prompt, eval_mode, sampling_noise
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """The request at `place` is being answered; its prompt has so many tokens."""

    request_index: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The request at `place` cannot be answered."""

    request_index: int
    error: str


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """One more token of a sample of the answer to the request at `place`.

    text: what it adds to the answer, empty while a character is not whole; joined, the raw answer. token: itself as text.
    log_prob: in nats, untempered. end: why it is the last one, with the end token or at the longest length.
    """

    request_index: int
    sample: int
    text: str
    token: str
    log_prob: float
    end: Literal["stop", "length"] | None


StreamEvent: TypeAlias = RequestStarted | RequestFailed | TokenGenerated


def can_stream_tokens(answerer: Answerer) -> bool:
    """Whether a system's tokens can be had one by one: a decoder-only model in this process."""
    is_local = isinstance(answerer, LocalAnswerer)
    return is_local and all(getattr(type(answerer), part) is getattr(LocalAnswerer, part) for part in ("stream", "generate_tokens"))


def stream_tokens(
    answerer: LocalAnswerer, requests: Sequence[Request], decoding: Decoding, cancelled: Callable[[int], bool] = lambda _: False
) -> Iterator[StreamEvent]:
    """The greedy answers, or k samples each for `mode: sample`, of all requests as they grow.

    abandoned: asked with the place of a request whether nobody waits for it any more; it then leaves its batch.
    """
    with eval_mode(answerer.model):
        for start in range(0, len(requests), decoding.batch_size):
            prompts: dict[int, Prompt] = {}
            for request_index in range(start, min(start + decoding.batch_size, len(requests))):
                try:
                    prompts[request_index] = answerer.encode(requests[request_index])
                    yield RequestStarted(request_index, len(prompts[request_index].ids))
                except TesseraError as error:
                    yield RequestFailed(request_index, str(error))
            if prompts:
                yield from _stream_batch(answerer, requests, prompts, decoding, cancelled)


def _stream_batch(
    answerer: LocalAnswerer, requests: Sequence[Request], prompts: dict[int, Prompt], decoding: Decoding, cancelled: Callable[[int], bool]
) -> Iterator[StreamEvent]:
    request_indices = list(prompts)
    sampling = decoding.strategy == "sample"
    k = decoding.num_candidates if sampling else 1
    batch = answerer.collate(list(prompts.values()))
    uniform_samples = (
        sampling_noise([requests[request_index] for request_index in request_indices], k, decoding).to(batch.input_ids.device)
        if sampling
        else None
    )
    texts = [IncrementalDetokenizer(answerer.decode) for _ in range(len(request_indices) * k)]
    decoding_steps = decode_steps(
        answerer.model,
        batch,
        k,
        decoding.max_new_tokens,
        answerer.end_ids,
        decoding.temperature,
        uniform_samples,
        lambda question: cancelled(request_indices[question]),
    )
    failed: set[int] = set()
    for step in decoding_steps:
        for row, token, log_prob in zip(step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), strict=True):
            request_index, text = request_indices[row // k], texts[row]
            if request_index in failed:
                continue
            if not math.isfinite(log_prob):
                failed.add(request_index)
                yield RequestFailed(request_index, "the model's probabilities are not finite numbers")
                continue
            last = token in answerer.end_ids
            piece = text.add(token)
            end: Literal["stop", "length"] | None = "stop" if last else "length" if len(text.ids) == decoding.max_new_tokens else None
            yield TokenGenerated(
                request_index, row % k, piece + (text.flush() if end else ""), str(answerer.tokenizer.decode([token])), log_prob, end
            )
