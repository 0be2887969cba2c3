"""Answers token by token, for many requests at once: what a service that streams shows its clients."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from answering.decoding.sampling import steps
from answering.protocol import Answerer, Decoding, Request
from answering.systems.local_model import GrowingText, LocalAnswerer, Prompt, evaluating, uniform
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class Begun:
    """The request at `place` is being answered; its prompt has so many tokens."""

    place: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The request at `place` cannot be answered."""

    place: int
    error: str


@dataclass(frozen=True, slots=True)
class Token:
    """One more token of a sample of the answer to the request at `place`.

    text: what it adds to the answer, empty while a character is not whole; joined, the raw answer. token: itself as text.
    log_prob: in nats, untempered. end: why it is the last one, with the end token or at the longest length.
    """

    place: int
    sample: int
    text: str
    token: str
    log_prob: float
    end: Literal["stop", "length"] | None


Event: TypeAlias = Begun | Refused | Token


def can_follow(answerer: Answerer) -> bool:
    """Whether a system's tokens can be had one by one: a decoder-only model in this process."""
    own = isinstance(answerer, LocalAnswerer)
    return own and all(getattr(type(answerer), part) is getattr(LocalAnswerer, part) for part in ("stream", "grow"))


def follow(
    answerer: LocalAnswerer, requests: Sequence[Request], decoding: Decoding, abandoned: Callable[[int], bool] = lambda _: False
) -> Iterator[Event]:
    """The greedy answers, or k samples each for `mode: sample`, of all requests as they grow.

    abandoned: asked with the place of a request whether nobody waits for it any more; it then leaves its batch.
    """
    with evaluating(answerer.model):
        for start in range(0, len(requests), decoding.batch_size):
            prompts: dict[int, Prompt] = {}
            for place in range(start, min(start + decoding.batch_size, len(requests))):
                try:
                    prompts[place] = answerer.encode(requests[place])
                    yield Begun(place, len(prompts[place].ids))
                except TesseraError as error:
                    yield Refused(place, str(error))
            if prompts:
                yield from _follow_batch(answerer, requests, prompts, decoding, abandoned)


def _follow_batch(
    answerer: LocalAnswerer, requests: Sequence[Request], prompts: dict[int, Prompt], decoding: Decoding, abandoned: Callable[[int], bool]
) -> Iterator[Event]:
    places = list(prompts)
    sampling = decoding.mode == "sample"
    k = decoding.k if sampling else 1
    batch = answerer.collate(list(prompts.values()))
    drawn = uniform([requests[place] for place in places], k, decoding).to(batch.input_ids.device) if sampling else None
    texts = [GrowingText(answerer.decode) for _ in range(len(places) * k)]
    growing = steps(
        answerer.model,
        batch,
        k,
        decoding.max_new_tokens,
        answerer.end_ids,
        decoding.temperature,
        drawn,
        lambda question: abandoned(places[question]),
    )
    failed: set[int] = set()
    for step in growing:
        for row, token, log_prob in zip(step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), strict=True):
            place, text = places[row // k], texts[row]
            if place in failed:
                continue
            if not math.isfinite(log_prob):
                failed.add(place)
                yield Refused(place, "the model's probabilities are not finite numbers")
                continue
            last = token in answerer.end_ids
            piece = text.add(token)
            end: Literal["stop", "length"] | None = "stop" if last else "length" if len(text.ids) == decoding.max_new_tokens else None
            yield Token(place, row % k, piece + (text.rest() if end else ""), str(answerer.tokenizer.decode([token])), log_prob, end)
