"""Greedy decoding and sampling, token by token. Samples are reproducible in any batch: their uniform random numbers are an argument."""

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
    """The next token of each active row. rows, tokens: [R] int64; log_probs: [R] float32, before the temperature is applied."""

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
    """Generate k continuations of each question, one token per step; row q * k + i is continuation i of question q.

    Finished rows are no longer yielded; questions whose rows have all finished leave the batch.

    Args:
        model: a decoder-only model with the interface of transformers.
        batch: the prompts of n questions.
        k: continuations per question.
        max_new_tokens: longest continuation in tokens, including the end token.
        end_ids: token ids that end a continuation.
        temperature: of sampling.
        uniform: [n * k, max_new_tokens] float64 random numbers in 0..1, by which tokens are sampled: the samples of a question do not
            depend on the rest of its batch. None takes the most probable token.
        cancelled: called after each step with the index of a question; a cancelled question leaves the batch.
        graph_cache: replays decoding steps as CUDA graphs; None runs them eagerly.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    cache = CandidateCache(model, batch, k, max_new_tokens, graph_cache)
    log_probs = cache.log_probs.expand(-1, k, -1)
    rows = torch.arange(n * k, device=device).view(n, k)
    unfinished = torch.ones_like(rows, dtype=torch.bool)
    for i in range(max_new_tokens):
        active_log_probs, active_rows = log_probs[unfinished], rows[unfinished]
        sampled = active_log_probs.argmax(-1) if uniform is None else sample_tokens(active_log_probs / temperature, uniform[active_rows, i])
        yield DecodingStep(active_rows, sampled, active_log_probs.gather(1, sampled[:, None])[:, 0])
        tokens = torch.full_like(rows, int(ends[0])).masked_scatter(unfinished, sampled)
        unfinished = unfinished & ~torch.isin(tokens, ends)
        if cancelled is not None:
            cancelled_questions = [cancelled(row // k) for row in rows[:, 0].tolist()]
            unfinished = unfinished & ~torch.tensor(cancelled_questions, device=device)[:, None]
        active = unfinished.any(dim=1)
        if not active.any() or i + 1 == max_new_tokens:
            return
        if not active.all():
            cache.keep(active.nonzero()[:, 0])
            rows, unfinished, tokens = rows[active], unfinished[active], tokens[active]
        log_probs = cache.step(tokens, torch.arange(k, device=device).expand_as(rows) if i else torch.zeros_like(rows))


def sample_tokens(logits_rv: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
    """Token ids [R], sampled by inverting the cumulative distribution of logits [R, V] at `uniform_r` [R]."""
    edges = torch.softmax(logits_rv.double(), dim=-1).cumsum(-1)
    # Scaled by the last edge, which rounding leaves slightly off 1; with `right`, tokens of probability 0 are never sampled.
    tokens = torch.searchsorted(edges, (uniform_r[:, None] * edges[:, -1:]), right=True)[:, 0]
    return tokens.clamp(max=logits_rv.shape[-1] - 1)


def collect(steps: Iterator[DecodingStep], n: int, k: int) -> list[list[GeneratedSequence]]:
    """The k sequences of each of n questions, collected from `decode_steps`."""
    tokens: list[list[int]] = [[] for _ in range(n * k)]
    log_probs = [0.0] * (n * k)
    for step in steps:
        for row, token, log_prob in zip(step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), strict=True):
            tokens[row].append(token)
            log_probs[row] += log_prob
    generated = [GeneratedSequence(tuple(ids), log_prob) for ids, log_prob in zip(tokens, log_probs, strict=True)]
    return [generated[i : i + k] for i in range(0, n * k, k)]
