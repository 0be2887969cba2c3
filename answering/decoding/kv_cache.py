"""The KV cache in which candidates are generated: prompt and images are prefilled once per question, shared by all its candidates.

A question is one row. The latest tokens of its candidates follow the prompt next to each other, and a mask lets each token attend
to the prompt and to the earlier tokens of its own sequence. So the keys and values of the prompt are stored once and read once per
step for all candidates, and nothing is moved in the cache when one beam replaces another.

Shapes: N questions (M that are still active), T prompt tokens, K candidates per question, V vocabulary.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache

from answering.decoding.cuda_graphs import CudaGraphCache, CudaGraphRunner, PreallocatedLayer, next_token_logits


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Left-padded prompts: input_ids and attention_mask [N, T] int64.

    position_ids: [N, T], or [axes, N, T] for models with several position axes. images: further arguments of the forward pass, such as
    pixel_values.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    images: dict[str, torch.Tensor] = field(default_factory=dict)


class EncoderDecoderCandidates:
    """The cache of an encoder-decoder: prompts are encoded once, and each candidate is a row of the decoder's cache.

    Relative positions, as T5 has, are counted in the cache, so that candidates cannot share a row there.
    """

    def __init__(self, model: Any, batch: PromptBatch):
        self.model, self.mask = model, batch.attention_mask
        self.hidden = model.encode_prompt(batch.input_ids, batch.attention_mask, **batch.images)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.full_like(batch.input_ids[:, :1], model.config.text_config.decoder_start_token_id)
        self.candidates = 1
        self.logits = self._forward(start)

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 1, V] after tokens [rows, 1]."""
        output = self.model(
            decoder_input_ids=tokens,
            encoder_hidden_states=self.hidden,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits.to(tokens.device, torch.float32)
        return logits

    def keep(self, questions: torch.Tensor) -> None:
        """As `CandidateCache.keep`."""
        own = torch.arange(self.candidates, device=questions.device)
        self._select((questions[:, None] * self.candidates + own).flatten())

    def step(self, tokens_mk: torch.Tensor, parents_mk: torch.Tensor) -> torch.Tensor:
        """As `CandidateCache.step`."""
        m, k = tokens_mk.shape
        first = torch.arange(m, device=tokens_mk.device)[:, None] * self.candidates
        self._select((first + parents_mk).flatten())
        self.candidates = k
        return self._forward(tokens_mk.reshape(m * k, 1)).view(m, k, -1)

    def _select(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]


class CandidateCache:
    """The KV cache of a decoder-only model, with mask and position ids of the next forward pass. Creating it runs the prompts.

    logits: [N, 1, V] float32 of the first token after the prompts. runner: replays decoding steps; None runs them eagerly.
    """

    def __init__(self, model: Any, batch: PromptBatch, k: int, max_new_tokens: int, graph_cache: CudaGraphCache | None = None):
        self.model = model
        # The last tokens are chosen, but no forward pass reads them.
        capacity = batch.input_ids.shape[1] + k * (max_new_tokens - 1)
        self.runner: CudaGraphRunner | None = graph_cache.runner(batch.position_ids, capacity, k) if graph_cache is not None else None
        self.cache = Cache(layer_class_to_replicate=partial(PreallocatedLayer, capacity)) if self.runner is None else self.runner.cache
        self.positions = batch.position_ids[..., -1:]
        self.mask = batch.attention_mask.bool()[:, None]
        self.rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        self.logits = next_token_logits(
            model, batch.input_ids, batch.attention_mask, batch.position_ids, self.cache, logits_to_keep=1, **batch.images
        )

    def keep(self, questions: torch.Tensor) -> None:
        """Keep the questions at these indices [M] int64; the others leave the batch. In a runner their rows stay, unused."""
        if self.runner is None:
            self.cache.batch_select_indices(questions)
        self.rows, self.mask, self.positions = self.rows[questions], self.mask[questions], self.positions[..., questions, :]

    def step(self, tokens_mk: torch.Tensor, parents_mk: torch.Tensor) -> torch.Tensor:
        """Logits [M, K, V] float32 of the token after `tokens_mk` [M, K].

        parents_mk: [M, K] index of the candidate that each token continues, among the K candidates of the step before (0 in the first
        step, when there is only the prompt).
        """
        m, k = tokens_mk.shape
        parent_mask = self.mask.gather(1, parents_mk[:, :, None].expand(-1, -1, self.mask.shape[2]))
        own_mask = torch.eye(k, dtype=torch.bool, device=tokens_mk.device).expand(m, -1, -1)
        self.mask = torch.cat([parent_mask, own_mask], dim=2)
        self.positions = self.positions + 1
        positions = self.positions.expand(*self.positions.shape[:-1], k)
        if self.runner is not None:
            return self.runner.step(self.rows, tokens_mk, self.mask, positions)
        return next_token_logits(self.model, tokens_mk, self.mask[:, None], positions, self.cache, logits_to_keep=0)


def prompt_cache(
    model: Any, batch: PromptBatch, k: int, max_new_tokens: int, graph_cache: CudaGraphCache | None = None
) -> CandidateCache | EncoderDecoderCandidates:
    """The cache for `model`, which has run the prompts: an encoder-decoder has a method `encode_prompt`."""
    if hasattr(model, "encode_prompt"):
        return EncoderDecoderCandidates(model, batch)
    return CandidateCache(model, batch, k, max_new_tokens, graph_cache)
