"""Candidates from a decoder-only model: beam search, greedy answers and samples, all grown in one kind of cache (answering.growth).

Legend: n questions (m that still grow), t prompt tokens, k candidates a question, r candidates that still grow, v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from answering.frames import Frames
from answering.growth import Growth
from answering.growth import PromptBatch as PromptBatch


@dataclass(frozen=True, slots=True)
class Generated:
    """Generated ids, end token included where one was reached, and their summed log-probability in nats."""

    token_ids: tuple[int, ...]
    log_prob: float


@torch.no_grad()
def beam_search(
    model: Any,
    batch: PromptBatch,
    k: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    abandoned: Callable[[int], bool] | None = None,
    frames: Frames | None = None,
) -> list[list[Generated]]:
    """The k best sequences of each question by mean log-probability, best first.

    The same search as `generate(num_beams=k, num_return_sequences=k)` with its default length penalty of 1: the k best
    continuations live on; a sequence that ends enters the question's list of k; a question stops when no living
    sequence could, at its present length, enter its list. Questions that have stopped leave the batch.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    growth = Growth(model, batch, k, max_new_tokens, frames)
    log_probs = growth.log_probs
    questions = torch.arange(n, device=device)
    living, tokens = torch.zeros(n, 1, device=device), torch.empty(n, 1, 0, dtype=torch.long, device=device)
    finished = _Finished(n, k, max_new_tokens, device)
    for length in range(1, max_new_tokens + 1):
        vocabulary = log_probs.shape[2]
        totals = (living[:, :, None] + log_probs).flatten(1)
        # One more than the end tokens times k: so many may end at once, and k must be left to live on.
        best, place = totals.topk((1 + len(ends)) * k)
        parent, token = place // vocabulary, place % vocabulary
        grown = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, length - 1)), token[:, :, None]], dim=2)
        ended = torch.isin(token, ends) | (length == max_new_tokens)
        finished.add(questions, best[:, :k].masked_fill(~ended[:, :k], -torch.inf), grown[:, :k])
        if length == max_new_tokens:
            break
        living, keep = best.masked_fill(ended, -torch.inf).topk(k)
        open_ = living[:, 0] / length > finished.worst(questions)
        if abandoned is not None:
            open_ &= ~torch.tensor([abandoned(question) for question in questions.tolist()], device=device)
        if not open_.any():
            break
        if not open_.all():
            growth.keep(open_.nonzero()[:, 0])
            questions, living, keep, grown, parent = (x[open_] for x in (questions, living, keep, grown, parent))
        tokens = grown.gather(1, keep[:, :, None].expand(-1, -1, length))
        log_probs = growth.step(tokens[:, :, -1], parent.gather(1, keep))
    return finished.lists()


class _Finished:
    """For each question the k best sequences that have ended."""

    def __init__(self, n: int, k: int, longest: int, device: torch.device):
        self.means = torch.full((n, k), -torch.inf, device=device)
        self.sums = self.means.clone()
        self.lengths = torch.zeros(n, k, dtype=torch.long, device=device)
        self.tokens = torch.zeros(n, k, longest, dtype=torch.long, device=device)

    def add(self, questions: torch.Tensor, sums: torch.Tensor, tokens: torch.Tensor) -> None:
        """sums: [m, k], -inf where a sequence has not ended; tokens: [m, k, length]."""
        k, length = sums.shape[1], tokens.shape[2]
        padded = torch.nn.functional.pad(tokens, (0, self.tokens.shape[2] - length))
        self.means[questions], kept = torch.cat([self.means[questions], sums / length], dim=1).topk(k)
        lengths = torch.full_like(kept[:, :1], length).expand(-1, k)
        self.sums[questions] = torch.cat([self.sums[questions], sums], dim=1).gather(1, kept)
        self.lengths[questions] = torch.cat([self.lengths[questions], lengths], dim=1).gather(1, kept)
        both = torch.cat([self.tokens[questions], padded], dim=1)
        self.tokens[questions] = both.gather(1, kept[:, :, None].expand(-1, -1, both.shape[2]))

    def worst(self, questions: torch.Tensor) -> torch.Tensor:
        """Mean log-probability [m] of the last in each list; -inf where the list is not full."""
        return self.means[questions, -1]

    def lists(self) -> list[list[Generated]]:
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), self.sums.tolist(), strict=True)
        return [[Generated(tuple(t[:m]), s) for t, m, s in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True, slots=True)
class Step:
    """The next token of each row that still grows: rows, tokens [r] int64, log_probs [r] float32 (untempered)."""

    rows: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor


@torch.no_grad()
def steps(
    model: Any,
    batch: PromptBatch,
    k: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 1.0,
    uniform: torch.Tensor | None = None,
    abandoned: Callable[[int], bool] | None = None,
    frames: Frames | None = None,
) -> Iterator[Step]:
    """k continuations of each question, token by token; row q * k + i is the i-th of question q. Rows that end are not
    yielded any more, and questions all of whose rows have ended leave the batch.

    uniform: [n * k, max_new_tokens] float64 numbers in 0..1 that draw the tokens, so that a question's samples do not
    depend on what else is in its batch; without it the likeliest token is taken. abandoned: asked after each step whether
    nobody waits for a question any more; it then leaves the batch too.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    growth = Growth(model, batch, k, max_new_tokens, frames)
    log_probs = growth.log_probs.expand(-1, k, -1)
    rows = torch.arange(n * k, device=device).view(n, k)
    growing = torch.ones_like(rows, dtype=torch.bool)
    for i in range(max_new_tokens):
        drawn_from, drawn_for = log_probs[growing], rows[growing]
        drawn = drawn_from.argmax(-1) if uniform is None else draw(drawn_from / temperature, uniform[drawn_for, i])
        yield Step(drawn_for, drawn, drawn_from.gather(1, drawn[:, None])[:, 0])
        tokens = torch.full_like(rows, int(ends[0])).masked_scatter(growing, drawn)
        growing = growing & ~torch.isin(tokens, ends)
        if abandoned is not None:
            gone = [abandoned(row // k) for row in rows[:, 0].tolist()]
            growing = growing & ~torch.tensor(gone, device=device)[:, None]
        open_ = growing.any(dim=1)
        if not open_.any() or i + 1 == max_new_tokens:
            return
        if not open_.all():
            growth.keep(open_.nonzero()[:, 0])
            rows, growing, tokens = rows[open_], growing[open_], tokens[open_]
        log_probs = growth.step(tokens, torch.arange(k, device=device).expand_as(rows) if i else torch.zeros_like(rows))


def draw(logits_rv: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
    """Tokens [r] by inverting the distribution function at `uniform_r`."""
    edges = torch.softmax(logits_rv.double(), dim=-1).cumsum(-1)
    # Scaled by the last edge, which rounding leaves a little off 1; `right` never lands on a token of probability 0.
    found = torch.searchsorted(edges, (uniform_r[:, None] * edges[:, -1:]), right=True)[:, 0]
    return found.clamp(max=logits_rv.shape[-1] - 1)


def collect(growing: Iterator[Step], n: int, k: int) -> list[list[Generated]]:
    """The k sequences of each of n questions, put together from `steps`."""
    tokens: list[list[int]] = [[] for _ in range(n * k)]
    log_probs = [0.0] * (n * k)
    for step in growing:
        for row, token, log_prob in zip(step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), strict=True):
            tokens[row].append(token)
            log_probs[row] += log_prob
    generated = [Generated(tuple(ids), log_prob) for ids, log_prob in zip(tokens, log_probs, strict=True)]
    return [generated[i : i + k] for i in range(0, n * k, k)]
