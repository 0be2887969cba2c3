"""Greedy decoding and sampling, token by token. Samples are reproducible in any batch: their uniform random numbers are an argument."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch, prompt_cache
from answering.protocol import Decoding, Request


@dataclass(frozen=True, slots=True)
class DecodingStep:
    """The next token of each active row.

    Args:
        rows: [R] int64.
        tokens: [R] int64.
        log_probs: [R] float32 under the model alone, before penalties and temperature.
        penalised_log_probs: [R] float32 after the penalties, before temperature, top_k and top_p; None: there are no penalties.
        ended: [R] bool: whether the token ends its row, as an end token or because it completes a stop text.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor
    penalised_log_probs: torch.Tensor | None
    ended: torch.Tensor


@torch.no_grad()
def decode_steps(
    model: Any,
    batch: PromptBatch,
    k: int,
    rules: DecodingRules,
    uniform: torch.Tensor | None = None,
    cancelled: Callable[[int], bool] | None = None,
    graph_cache: CudaGraphCache | None = None,
) -> Iterator[DecodingStep]:
    """Generate k continuations of each question, one token per step; row q * k + i is continuation i of question q.

    Finished rows are no longer yielded; questions whose rows have all finished leave the batch.

    Args:
        model: a model with the interface of transformers.
        batch: the prompts of n questions.
        k: continuations per question.
        rules: end of a continuation, penalties, temperature.
        uniform: [n * k, max_new_tokens] float64 random numbers in 0..1, by which tokens are sampled: the samples of a question do not
            depend on the rest of its batch. None takes the most probable token.
        cancelled: called after each step with the index of a question; a cancelled question leaves the batch.
        graph_cache: replays decoding steps as CUDA graphs; None runs them eagerly.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(rules.end_ids), device=device)
    cache = prompt_cache(model, batch, k, rules.max_new_tokens, graph_cache)
    logits = cache.logits.expand(-1, k, -1)
    rows = torch.arange(n * k, device=device).view(n, k)
    unfinished, texts = torch.ones_like(rows, dtype=torch.bool), rows.new_empty(n, k, 0)
    for i in range(rules.max_new_tokens):
        active_rows = rows[unfinished]
        chosen, log_probs, penalised = _choose(
            rules, texts[unfinished], logits[unfinished], None if uniform is None else uniform[active_rows, i]
        )
        tokens = torch.full_like(rows, int(ends[0])).masked_scatter(unfinished, chosen)
        texts = torch.cat([texts, tokens[:, :, None]], dim=2)
        ended = torch.isin(chosen, ends) | rules.stopped(texts[unfinished])
        yield DecodingStep(active_rows, chosen, log_probs, penalised, ended)
        unfinished = unfinished.masked_scatter(unfinished, ~ended)
        if cancelled is not None:
            cancelled_questions = [cancelled(row // k) for row in rows[:, 0].tolist()]
            unfinished = unfinished & ~torch.tensor(cancelled_questions, device=device)[:, None]
        active = unfinished.any(dim=1)
        if not active.any() or i + 1 == rules.max_new_tokens:
            return
        if not active.all():
            cache.keep(active.nonzero()[:, 0])
            rows, unfinished, tokens, texts = rows[active], unfinished[active], tokens[active], texts[active]
        logits = cache.step(tokens, torch.arange(k, device=device).expand_as(rows) if i else torch.zeros_like(rows))


def _choose(
    rules: DecodingRules, texts: torch.Tensor, logits: torch.Tensor, uniform: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The next tokens [R] of the answers so far, texts [R, L] int64, and their log-probabilities before and after the penalties.

    logits: [R, V]. uniform: [R] random numbers in 0..1; None takes the most probable token.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    scores = rules.penalties(texts, logits) if rules.penalties else log_probs
    tokens = scores.argmax(-1) if uniform is None else sample_tokens(rules.warpers(texts, scores), uniform)
    penalised = torch.log_softmax(scores, dim=-1).gather(1, tokens[:, None])[:, 0] if rules.penalties else None
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0], penalised


def sample_tokens(logits_rv: torch.Tensor, uniform_r: torch.Tensor) -> torch.Tensor:
    """Token ids [R], sampled by inverting the cumulative distribution of logits [R, V] at `uniform_r` [R]."""
    edges = torch.softmax(logits_rv.double(), dim=-1).cumsum(-1)
    # Scaled by the last edge, which rounding leaves slightly off 1; with `right`, tokens of probability 0 are never sampled.
    tokens = torch.searchsorted(edges, (uniform_r[:, None] * edges[:, -1:]), right=True)[:, 0]
    return tokens.clamp(max=logits_rv.shape[-1] - 1)


def sampling_noise(requests: Sequence[Request], k: int, decoding: Decoding) -> torch.Tensor:
    """Uniform random numbers [len(requests) * k, max_new_tokens] in 0..1. They depend only on (seed, request id), not on the batch."""
    rows = []
    for request in requests:
        digest = hashlib.blake2b(f"{decoding.seed}\0{request.request_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        rows.append(torch.rand(k, decoding.max_new_tokens, dtype=torch.float64, generator=generator))
    return torch.cat(rows)


def collect(steps: Iterator[DecodingStep], n: int, k: int) -> list[list[GeneratedSequence]]:
    """The k sequences of each of n questions, collected from `decode_steps`."""
    tokens: list[list[int]] = [[] for _ in range(n * k)]
    log_probs = [0.0] * (n * k)
    penalised: list[float | None] = [None] * (n * k)
    for step in steps:
        after_penalties = [None] * len(step.rows) if step.penalised_log_probs is None else step.penalised_log_probs.tolist()
        columns = (step.rows.tolist(), step.tokens.tolist(), step.log_probs.tolist(), after_penalties)
        for row, token, log_prob, penalised_log_prob in zip(*columns, strict=True):
            tokens[row].append(token)
            log_probs[row] += log_prob
            if penalised_log_prob is not None:
                penalised[row] = (penalised[row] or 0.0) + penalised_log_prob
    generated = [GeneratedSequence(tuple(ids), own, after) for ids, own, after in zip(tokens, log_probs, penalised, strict=True)]
    return [generated[i : i + k] for i in range(0, n * k, k)]
