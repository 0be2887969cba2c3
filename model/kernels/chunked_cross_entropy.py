"""Cross entropy over the vocabulary in bounded memory.

In: hidden states at supervised positions and the tokens that follow. Out: the sum of the losses.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BYTES_PER_LOGIT = 14
"""Most memory at once for a score of one token: in the backward pass, its log-probability and two gradients in fp32, and
the gradient in bf16 that goes on into the vocabulary product."""


def positions_per_chunk(memory_gib: float, vocab_size: int) -> int:
    """Positions whose scores over the whole vocabulary fit into this much memory; at least one."""
    return max(1, int(memory_gib * 2**30 / (BYTES_PER_LOGIT * vocab_size)))


def chunked_cross_entropy(
    lm_head: nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor, chunk_size: int | None = None
) -> torch.Tensor:
    """Sum of the cross entropies in fp32: hidden [S, D], targets int64 [S] -> scalar.

    head: the vocabulary product, [n, D] -> [n, vocabulary]. Where S is more than at_once, it is made for equal chunks one
    after the other and again in the backward pass, so no more than a chunk's scores exist at any time.
    """
    if chunk_size is None or len(targets) <= chunk_size:
        return _cross_entropy_sum(lm_head, hidden_states, targets)
    num_chunks = math.ceil(len(targets) / chunk_size)
    total = hidden_states.new_zeros((), dtype=torch.float32)
    for chunk, chunk_targets in zip(hidden_states.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        total = total + checkpoint(_cross_entropy_sum, lm_head, chunk, chunk_targets, use_reentrant=False, preserve_rng_state=False)
    return total


def _cross_entropy_sum(lm_head: nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(lm_head(hidden_states).float(), targets, reduction="sum")
