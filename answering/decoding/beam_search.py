"""Candidates from a decoder-only model: beam search, greedy answers and samples, all grown in one kind of cache (answering.growth).

Legend: n questions (m that still grow), t prompt tokens, k candidates a question, r candidates that still grow, v vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from answering.decoding.cuda_graphs import Frames
from answering.decoding.kv_cache import Growth
from answering.decoding.kv_cache import PromptBatch as PromptBatch


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
