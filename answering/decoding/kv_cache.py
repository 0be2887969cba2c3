"""The cache in which candidates grow: prompt and pictures run once a question, then one step makes all its candidates longer.

A question stays one row. The newest tokens of its candidates stand behind its prompt side by side, and a mask lets each see
the prompt and the tokens it has grown from. So the prompt's keys and values exist once, are read once a step for all
candidates, and nothing moves in the cache when a candidate takes another's place.

Legend: n questions (m that still grow), t prompt tokens, k candidates a question, v vocabulary.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import Cache

from answering.decoding.cuda_graphs import CudaGraphCache, CudaGraphRunner, PreallocatedLayer, log_probabilities


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts padded on the left. input_ids, attention_mask: [n, t] int64; position_ids: [n, t], or [axes, n, t] for
    models with several position axes; pictures: further arguments of the forward pass, such as pixel_values."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    images: dict[str, torch.Tensor] = field(default_factory=dict)


class CandidateCache:
    """The cache of a batch and what the next forward pass needs beside the next tokens.

    frames: where steps are replayed from, if they are. log_probs: [n, 1, v] float32, of the tokens behind the prompts.
    """

    def __init__(self, model: Any, batch: PromptBatch, k: int, max_new_tokens: int, graph_cache: CudaGraphCache | None = None):
        self.model = model
        # The last tokens are chosen, but never read.
        capacity = batch.input_ids.shape[1] + k * (max_new_tokens - 1)
        self.runner: CudaGraphRunner | None = graph_cache.runner(batch.position_ids, capacity, k) if graph_cache is not None else None
        self.cache = Cache(layer_class_to_replicate=partial(PreallocatedLayer, capacity)) if self.runner is None else self.runner.cache
        self.positions = batch.position_ids[..., -1:]
        self.mask = batch.attention_mask.bool()[:, None]
        self.rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        self.log_probs = log_probabilities(
            model, batch.input_ids, batch.attention_mask, batch.position_ids, self.cache, logits_to_keep=1, **batch.images
        )

    def keep(self, questions: torch.Tensor) -> None:
        """The questions at these places [m] int64 stay, the others leave the batch. In a frame their rows run on, unread."""
        if self.runner is None:
            self.cache.batch_select_indices(questions)
        self.rows, self.mask, self.positions = self.rows[questions], self.mask[questions], self.positions[..., questions, :]

    def step(self, tokens_mk: torch.Tensor, parents_mk: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [m, k, v] float32 of what comes behind `tokens_mk`. parents_mk: of the k candidates of the step
        before (of the one prompt, in the first step), the place of that which each token continues."""
        m, k = tokens_mk.shape
        parent_mask = self.mask.gather(1, parents_mk[:, :, None].expand(-1, -1, self.mask.shape[2]))
        own_mask = torch.eye(k, dtype=torch.bool, device=tokens_mk.device).expand(m, -1, -1)
        self.mask = torch.cat([parent_mask, own_mask], dim=2)
        self.positions = self.positions + 1
        positions = self.positions.expand(*self.positions.shape[:-1], k)
        if self.runner is not None:
            return self.runner.step(self.rows, tokens_mk, self.mask, positions)
        return log_probabilities(self.model, tokens_mk, self.mask[:, None], positions, self.cache, logits_to_keep=0)
