"""Beam search, with one KV cache per batch (`answering.decoding.kv_cache`).

Shapes: N questions (M that are still active), T prompt tokens, K candidates per question, L tokens so far, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch, prompt_cache


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """Generated token ids, including the end token if one was reached, and their summed log-probability under the model alone, in nats.

    penalised_log_prob: the same after the penalties of the decoding, by which sequences are ranked; None: there are none.
    """

    token_ids: tuple[int, ...]
    log_prob: float
    penalised_log_prob: float | None = None


@torch.no_grad()
def beam_search(
    model: Any,
    batch: PromptBatch,
    k: int,
    rules: DecodingRules,
    cancelled: Callable[[int], bool] | None = None,
    graph_cache: CudaGraphCache | None = None,
) -> list[list[GeneratedSequence]]:
    """The k best sequences of each question by log-probability / tokens ** length_penalty, best first.

    The same search as `generate(num_beams=k, num_return_sequences=k)`: the k best unfinished continuations stay as beams; a finished
    sequence enters the question's list of the k best; a question stops when none of its beams, at its present length, could enter that
    list. Stopped questions leave the batch. Penalties change the log-probabilities by which the search ranks, as in `generate`.
    If fewer than k sequences are possible under the rules, the others have a log-probability of minus infinity.

    Args:
        model: a model with the interface of transformers.
        batch: the prompts.
        k: number of beams, and of sequences returned per question.
        rules: end of a sequence, penalties, length penalty.
        cancelled: called after each step with the index of a question; a cancelled question leaves the batch.
        graph_cache: replays decoding steps as CUDA graphs; None runs them eagerly.
    """
    device, n = batch.input_ids.device, len(batch.input_ids)
    ends = torch.tensor(list(rules.end_ids), device=device)
    cache = prompt_cache(model, batch, k, rules.max_new_tokens, graph_cache)
    logits = cache.logits
    questions = torch.arange(n, device=device)
    running, tokens = torch.zeros(n, 1, device=device), torch.empty(n, 1, 0, dtype=torch.long, device=device)
    unpenalised = running
    finished_beams = _FinishedBeams(n, k, rules, device)
    for length in range(1, rules.max_new_tokens + 1):
        log_probs = torch.log_softmax(logits, dim=-1)
        penalised = rules.penalties(tokens.flatten(0, 1), log_probs.flatten(0, 1)).view_as(log_probs)
        # Up to len(ends) * k of the best may end here, and k must remain as beams.
        best, flat_index = (running[:, :, None] + penalised).flatten(1).topk((1 + len(ends)) * k)
        parent, token = flat_index // logits.shape[2], flat_index % logits.shape[2]
        unpenalised = unpenalised.gather(1, parent) + log_probs.flatten(1).gather(1, flat_index)
        extended = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, length - 1)), token[:, :, None]], dim=2)
        ended = torch.isin(token, ends) | (length == rules.max_new_tokens) | rules.stopped(extended)
        # NaN stays, so that a model without finite probabilities is told from rules without a possible answer.
        finished = best.masked_fill(~ended & ~best.isnan(), -torch.inf)
        finished_beams.add(questions, finished[:, :k], unpenalised[:, :k], extended[:, :k])
        if length == rules.max_new_tokens:
            break
        running, keep = best.masked_fill(ended, -torch.inf).topk(k)
        active = running[:, 0] / length**rules.length_penalty > finished_beams.scores[questions, -1]
        if cancelled is not None:
            active &= ~torch.tensor([cancelled(question) for question in questions.tolist()], device=device)
        if not active.any():
            break
        if not active.all():
            cache.keep(active.nonzero()[:, 0])
            questions, running, keep, extended, parent, unpenalised = (
                x[active] for x in (questions, running, keep, extended, parent, unpenalised)
            )
        tokens = extended.gather(1, keep[:, :, None].expand(-1, -1, length))
        unpenalised = unpenalised.gather(1, keep)
        logits = cache.step(tokens[:, :, -1], parent.gather(1, keep))
    return finished_beams.to_lists()


class _FinishedBeams:
    """The k best finished sequences of each question, best first; the last score of a list that is not full is -inf."""

    def __init__(self, n: int, k: int, rules: DecodingRules, device: torch.device):
        self.rules = rules
        self.scores = torch.full((n, k), -torch.inf, device=device)
        self.sums, self.unpenalised = self.scores.clone(), self.scores.clone()
        self.lengths = torch.zeros(n, k, dtype=torch.long, device=device)
        self.tokens = torch.zeros(n, k, rules.max_new_tokens, dtype=torch.long, device=device)

    def add(self, questions: torch.Tensor, sums: torch.Tensor, unpenalised: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add sequences.

        Args:
            questions: [M] int64.
            sums: [M, K] log-probabilities by which they are ranked; -inf if a sequence is not finished.
            unpenalised: [M, K] log-probabilities under the model alone.
            tokens: [M, K, L].
        """
        k, length = sums.shape[1], tokens.shape[2]
        padded = torch.nn.functional.pad(tokens, (0, self.tokens.shape[2] - length))
        scores = sums / length**self.rules.length_penalty
        self.scores[questions], top_indices = torch.cat([self.scores[questions], scores], dim=1).topk(k)
        lengths = torch.full_like(top_indices[:, :1], length).expand(-1, k)
        for kept, new in ((self.sums, sums), (self.unpenalised, unpenalised), (self.lengths, lengths)):
            kept[questions] = torch.cat([kept[questions], new], dim=1).gather(1, top_indices)
        both = torch.cat([self.tokens[questions], padded], dim=1)
        self.tokens[questions] = both.gather(1, top_indices[:, :, None].expand(-1, -1, both.shape[2]))

    def to_lists(self) -> list[list[GeneratedSequence]]:
        # What was never filled, or only with what the rules forbid, has no log-probability under the model either.
        unpenalised = self.unpenalised.masked_fill(self.sums == -torch.inf, -torch.inf)
        penalised = self.sums.tolist() if self.rules.penalties else [[None] * self.sums.shape[1]] * len(self.sums)
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), unpenalised.tolist(), penalised, strict=True)
        return [[GeneratedSequence(tuple(t[:m]), s, p) for t, m, s, p in zip(*row, strict=True)] for row in rows]
