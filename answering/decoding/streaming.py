"""Stream the answers to many requests at once, token by token."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from answering.decoding.stop_strings import IncrementalDetokenizer
from answering.protocol import Decoding, FinishReason, Request
from answering.systems.family_answerer import FamilyAnswerer, eval_mode
from errors import TesseraError
from model.processors.sample_processor import Prompt


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """Decoding of the request at `request_index` begins; its prompt has `prompt_tokens` tokens."""

    request_index: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The request at `request_index` cannot be answered."""

    request_index: int
    error: str


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """One more token of one sample of the answer to a request.

    Args:
        request_index: which request.
        sample: which sample, 0 for a greedy answer.
        text: the text it adds to the answer, empty while a character is incomplete; joined, it is the raw answer.
        token: the token itself as text.
        log_prob: in nats, under the model alone: before penalties and temperature.
        end: on the last token, why decoding stopped: "stop" for an end token or a stop text, "length" for max_new_tokens; else None.
    """

    request_index: int
    sample: int
    text: str
    token: str
    log_prob: float
    end: FinishReason | None


StreamEvent: TypeAlias = RequestStarted | RequestFailed | TokenGenerated


def stream_tokens(
    answerer: FamilyAnswerer, requests: Sequence[Request], decoding: Decoding, cancelled: Callable[[int], bool] = lambda _: False
) -> Iterator[StreamEvent]:
    """The greedy answers to all requests, or k samples each with `strategy: sample`, as a stream of events.

    Args:
        answerer: the system.
        requests: decoded `decoding.batch_size` at a time.
        decoding: `strategy: beam` decodes greedily.
        cancelled: called with the index of a request; a cancelled request leaves its batch.
    """
    with eval_mode(answerer.model):
        for start in range(0, len(requests), decoding.batch_size):
            prompts: dict[int, Prompt] = {}
            for request_index in range(start, min(start + decoding.batch_size, len(requests))):
                try:
                    prompts[request_index] = answerer.encode_with_room(requests[request_index], decoding)
                    yield RequestStarted(request_index, len(prompts[request_index].ids))
                except TesseraError as error:
                    yield RequestFailed(request_index, str(error))
            if prompts:
                yield from _stream_batch(answerer, requests, prompts, decoding, cancelled)


def _stream_batch(
    answerer: FamilyAnswerer, requests: Sequence[Request], prompts: dict[int, Prompt], decoding: Decoding, cancelled: Callable[[int], bool]
) -> Iterator[StreamEvent]:
    request_indices = list(prompts)
    k = decoding.num_candidates if decoding.strategy == "sample" else 1
    texts = [IncrementalDetokenizer(answerer.text, decoding.stop) for _ in range(len(request_indices) * k)]
    decoding_steps = answerer.decode_steps(
        [requests[i] for i in request_indices], list(prompts.values()), k, decoding, lambda question: cancelled(request_indices[question])
    )
    failed: set[int] = set()
    for step in decoding_steps:
        columns = (step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), step.ended.tolist())
        for row, token, log_prob, ended in zip(*columns, strict=True):
            request_index, text = request_indices[row // k], texts[row]
            if request_index in failed:
                continue
            if not math.isfinite(log_prob):
                failed.add(request_index)
                yield RequestFailed(request_index, "the model's probabilities are not finite numbers")
                continue
            piece = text.add(token)
            end: FinishReason | None = "stop" if ended else "length" if len(text.ids) == decoding.max_new_tokens else None
            yield TokenGenerated(
                request_index, row % k, piece + (text.flush() if end else ""), str(answerer.tokenizer.decode([token])), log_prob, end
            )
