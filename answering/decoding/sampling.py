"""Greedy decoding and sampling, token by token; `sampling` with uniform numbers given from outside is reproducible in any batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.kv_cache import CandidateCache
from answering.decoding.kv_cache import PromptBatch as PromptBatch


@dataclass(frozen=True, slots=True)
class DecodingStep:
    """The next token of each row that still grows: rows, tokens [r] int64, log_probs [r] float32 (untempered)."""

    rows: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor


@torch.no_grad()
def decode_steps(
    model: Any,
    batch: PromptBatch,
    k: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 1.0,
    uniform: torch.Tensor | None = None,
    cancelled: Callable[[int], bool] | None = None,
    graph_cache: CudaGraphCache | None = None,
) -> Iterator[DecodingStep]:
    """k continuations of each question, token by token; row q * k + i is the i-th of question q. Rows that end are not
    yielded any more, and questions all of whose rows have ended leave the batch.

    uniform: [n * k, max_new_tokens] float64 numbers in 0..1 that draw the tokens, so that a question's samples do not
    depend on what else is in its batch; without it the likeliest token is taken. abandoned: asked after each step whether
    nobody waits for a question any more; it then leaves the batch too.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    cache = CandidateCache(model, batch, k, max_new_tokens, graph_cache)
    log_probs = cache.log_probs.expand(-1, k, -1)
    rows = torch.arange(n * k, device=device).view(n, k)
    growing = torch.ones_like(rows, dtype=torch.bool)
    for i in range(max_new_tokens):
        active_log_probs, active_rows = log_probs[growing], rows[growing]
        sampled = active_log_probs.argmax(-1) if uniform is None else sample_tokens(active_log_probs / temperature, uniform[active_rows, i])
        yield DecodingStep(active_rows, sampled, active_log_probs.gather(1, sampled[:, None])[:, 0])
        tokens = torch.full_like(rows, int(ends[0])).masked_scatter(growing, sampled)
        growing = growing & ~torch.isin(tokens, ends)
        if cancelled is not None:
            cancelled_questions = [cancelled(row // k) for row in rows[:, 0].tolist()]
            growing = growing & ~torch.tensor(cancelled_questions, device=device)[:, None]
        active = growing.any(dim=1)
        if not active.any() or i + 1 == max_new_tokens:
            return
        if not active.all():
            cache.keep(active.nonzero()[:, 0])
            rows, growing, tokens = rows[active], growing[active], tokens[active]
        log_probs = cache.step(tokens, torch.arange(k, device=device).expand_as(rows) if i else torch.zeros_like(rows))


def sample_tokens(logits_rv: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
    """Tokens [r] by inverting the distribution function at `uniform_r`."""
    edges = torch.softmax(logits_rv.double(), dim=-1).cumsum(-1)
    # Scaled by the last edge, which rounding leaves a little off 1; `right` never lands on a token of probability 0.
    found = torch.searchsorted(edges, (uniform_r[:, None] * edges[:, -1:]), right=True)[:, 0]
    return found.clamp(max=logits_rv.shape[-1] - 1)


def collect(growing: Iterator[DecodingStep], n: int, k: int) -> list[list[GeneratedSequence]]:
    """The k sequences of each of n questions, put together from `steps`."""
    tokens: list[list[int]] = [[] for _ in range(n * k)]
    log_probs = [0.0] * (n * k)
    for step in growing:
        for row, token, log_prob in zip(step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), strict=True):
            tokens[row].append(token)
            log_probs[row] += log_prob
    generated = [GeneratedSequence(tuple(ids), log_prob) for ids, log_prob in zip(tokens, log_probs, strict=True)]
    return [generated[i : i + k] for i in range(0, n * k, k)]
