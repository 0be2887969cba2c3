"""Candidates from a decoder-only model: prompt and pictures run once a question, and every candidate grows from that cache.

Legend: n questions, t prompt tokens, k candidates a question, r rows (candidates that still grow), v vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts padded on the left. input_ids, attention_mask: [n, t] int64; position_ids: [n, t], or [axes, n, t] for
    models with several position axes; pictures: further arguments of the forward pass, such as pixel_values."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generated:
    """Generated ids, end token included where one was reached, and their summed log-probability in nats."""

    token_ids: tuple[int, ...]
    log_prob: float


class _Growth:
    """The cache of a batch and what the next forward pass needs beside the next tokens."""

    def __init__(self, model: Any, batch: PromptBatch):
        self.model = model
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.mask, self.positions = batch.attention_mask, batch.position_ids[..., -1:]
        self.log_probs_nv = self._forward(batch.input_ids, batch.position_ids, **batch.pictures)

    def repeat(self, k: int) -> None:
        """Every row k times, one after the other."""
        self.cache.batch_repeat_interleave(k)
        self.mask, self.positions = self.mask.repeat_interleave(k, 0), self.positions.repeat_interleave(k, -2)

    def select(self, rows: torch.Tensor) -> None:
        """Keep the rows `rows` [r] int64, in that order; a row may come several times."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[..., rows, :]

    def step(self, tokens_r: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [r, v] float32 of the tokens behind `tokens_r`."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.positions = self.positions + 1
        return self._forward(tokens_r[:, None], self.positions)

    def _forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **pictures: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=self.mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **pictures,
        )
        return torch.log_softmax(output.logits[:, -1].to(input_ids.device, torch.float32), dim=-1)


@torch.no_grad()
def beam_search(model: Any, batch: PromptBatch, k: int, max_new_tokens: int, end_ids: Sequence[int]) -> list[list[Generated]]:
    """The k best sequences of each question by mean log-probability, best first.

    The same search as `generate(num_beams=k, num_return_sequences=k)` with its default length penalty of 1: the k best
    continuations live on; a sequence that ends enters the question's list of k; a question stops when no living
    sequence could, at its present length, enter its list. Questions that have stopped leave the batch.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    growth = _Growth(model, batch)
    log_probs = growth.log_probs_nv
    questions = torch.arange(n, device=device)
    living, tokens = torch.zeros(n, 1, device=device), torch.empty(n, 1, 0, dtype=torch.long, device=device)
    finished = _Finished(n, k, max_new_tokens, device)
    for length in range(1, max_new_tokens + 1):
        m, beams, vocabulary = len(questions), living.shape[1], log_probs.shape[-1]
        totals = (living[:, :, None] + log_probs.view(m, beams, vocabulary)).flatten(1)
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
        if not open_.any():
            break
        questions, living, keep = questions[open_], living[open_], keep[open_]
        tokens = grown[open_].gather(1, keep[:, :, None].expand(-1, -1, length))
        rows = torch.arange(m, device=device)[open_, None] * beams + parent[open_].gather(1, keep)
        growth.select(rows.flatten())
        log_probs = growth.step(tokens[:, :, -1].flatten())
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
) -> Iterator[Step]:
    """k continuations of each question, token by token; row q * k + i is the i-th of question q. Rows that end leave.

    uniform: [n * k, max_new_tokens] float64 numbers in 0..1 that draw the tokens, so that a question's samples do not
    depend on what else is in its batch; without it the likeliest token is taken.
    """
    device = batch.input_ids.device
    ends = torch.tensor(list(end_ids), device=device)
    growth = _Growth(model, batch)
    growth.repeat(k)
    log_probs = growth.log_probs_nv.repeat_interleave(k, 0)
    rows = torch.arange(len(log_probs), device=device)
    for i in range(max_new_tokens):
        tokens = log_probs.argmax(-1) if uniform is None else _draw(log_probs / temperature, uniform[rows, i])
        yield Step(rows, tokens, log_probs.gather(1, tokens[:, None])[:, 0])
        growing = (~torch.isin(tokens, ends)).nonzero()[:, 0]
        if len(growing) == 0 or i + 1 == max_new_tokens:
            return
        if len(growing) < len(rows):
            rows, tokens = rows[growing], tokens[growing]
            growth.select(growing)
        log_probs = growth.step(tokens)


def _draw(logits_rv: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
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
