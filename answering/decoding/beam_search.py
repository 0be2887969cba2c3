"""Beam search for a decoder-only model, with one KV cache per batch (`answering.decoding.kv_cache`).

Shapes: N questions (M that are still active), T prompt tokens, K candidates per question, L tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.kv_cache import CandidateCache
from answering.decoding.kv_cache import PromptBatch as PromptBatch


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """Generated token ids, including the end token if one was reached, and their summed log-probability in nats."""

    token_ids: tuple[int, ...]
    log_prob: float


@torch.no_grad()
def beam_search(
    model: Any,
    batch: PromptBatch,
    k: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    cancelled: Callable[[int], bool] | None = None,
    graph_cache: CudaGraphCache | None = None,
) -> list[list[GeneratedSequence]]:
    """The k best sequences of each question by mean log-probability, best first.

    The same search as `generate(num_beams=k, num_return_sequences=k)` with its default length penalty of 1: the k best unfinished
    continuations stay as beams; a finished sequence enters the question's list of the k best; a question stops when none of its
    beams, at its present length, could enter that list. Stopped questions leave the batch.

    Args:
        model: a decoder-only model with the interface of transformers.
        batch: the prompts.
        k: number of beams, and of sequences returned per question.
        max_new_tokens: longest sequence in tokens, including the end token.
        end_ids: token ids that end a sequence.
        cancelled: called after each step with the index of a question; a cancelled question leaves the batch.
        graph_cache: replays decoding steps as CUDA graphs; None runs them eagerly.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(end_ids), device=device)
    cache = CandidateCache(model, batch, k, max_new_tokens, graph_cache)
    log_probs = cache.log_probs
    questions = torch.arange(n, device=device)
    running, tokens = torch.zeros(n, 1, device=device), torch.empty(n, 1, 0, dtype=torch.long, device=device)
    finished_beams = _FinishedBeams(n, k, max_new_tokens, device)
    for length in range(1, max_new_tokens + 1):
        vocabulary = log_probs.shape[2]
        totals = (running[:, :, None] + log_probs).flatten(1)
        # Up to len(ends) * k of the best may end here, and k must remain as beams.
        best, flat_index = totals.topk((1 + len(ends)) * k)
        parent, token = flat_index // vocabulary, flat_index % vocabulary
        extended = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, length - 1)), token[:, :, None]], dim=2)
        ended = torch.isin(token, ends) | (length == max_new_tokens)
        finished_beams.add(questions, best[:, :k].masked_fill(~ended[:, :k], -torch.inf), extended[:, :k])
        if length == max_new_tokens:
            break
        running, keep = best.masked_fill(ended, -torch.inf).topk(k)
        active = running[:, 0] / length > finished_beams.worst(questions)
        if cancelled is not None:
            active &= ~torch.tensor([cancelled(question) for question in questions.tolist()], device=device)
        if not active.any():
            break
        if not active.all():
            cache.keep(active.nonzero()[:, 0])
            questions, running, keep, extended, parent = (x[active] for x in (questions, running, keep, extended, parent))
        tokens = extended.gather(1, keep[:, :, None].expand(-1, -1, length))
        log_probs = cache.step(tokens[:, :, -1], parent.gather(1, keep))
    return finished_beams.to_lists()


class _FinishedBeams:
    """The k best finished sequences of each question."""

    def __init__(self, n: int, k: int, max_length: int, device: torch.device):
        self.means = torch.full((n, k), -torch.inf, device=device)
        self.sums = self.means.clone()
        self.lengths = torch.zeros(n, k, dtype=torch.long, device=device)
        self.tokens = torch.zeros(n, k, max_length, dtype=torch.long, device=device)

    def add(self, questions: torch.Tensor, sums: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add sequences. sums: [M, K] log-probabilities, -inf if a sequence is not finished; tokens: [M, K, L]."""
        k, length = sums.shape[1], tokens.shape[2]
        padded = torch.nn.functional.pad(tokens, (0, self.tokens.shape[2] - length))
        self.means[questions], top_indices = torch.cat([self.means[questions], sums / length], dim=1).topk(k)
        lengths = torch.full_like(top_indices[:, :1], length).expand(-1, k)
        self.sums[questions] = torch.cat([self.sums[questions], sums], dim=1).gather(1, top_indices)
        self.lengths[questions] = torch.cat([self.lengths[questions], lengths], dim=1).gather(1, top_indices)
        both = torch.cat([self.tokens[questions], padded], dim=1)
        self.tokens[questions] = both.gather(1, top_indices[:, :, None].expand(-1, -1, both.shape[2]))

    def worst(self, questions: torch.Tensor) -> torch.Tensor:
        """Mean log-probability [M] of the last sequence in each list; -inf if the list is not full."""
        return self.means[questions, -1]

    def to_lists(self) -> list[list[GeneratedSequence]]:
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), self.sums.tolist(), strict=True)
        return [[GeneratedSequence(tuple(t[:m]), s) for t, m, s in zip(*row, strict=True)] for row in rows]
