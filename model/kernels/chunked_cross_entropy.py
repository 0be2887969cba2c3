"""Next-token cross entropy in bounded memory: logits are computed in chunks and recomputed in the backward pass.

Shapes: S supervised positions, D hidden size, V vocabulary size.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BYTES_PER_LOGIT = 14
"""Peak memory per logit, reached in the backward pass: log-probability and two gradients in fp32 (12 bytes), and the 16-bit gradient
that enters the backward pass of `lm_head` (2 bytes)."""


def positions_per_chunk(memory_gib: float, vocab_size: int) -> int:
    """Number of positions whose logits fit into `memory_gib`; at least one."""
    return max(1, int(memory_gib * 2**30 / (BYTES_PER_LOGIT * vocab_size)))


class LanguageModelHead(nn.Linear):
    """The vocabulary matrix [V, D], without bias: logits of hidden states, or their summed cross entropy in chunks.

    The chunks are inside the module. Where weights are sharded (FSDP2, ZeRO-3), every call of a module gathers its weights from all
    ranks, so all ranks must call it equally often; the number of chunks depends on a rank's own supervised tokens.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, hidden_states: torch.Tensor, targets: torch.Tensor | None = None, chunk_size: int | None = None) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., D]; with targets, int64 [S], what `chunked_cross_entropy` returns."""
        if targets is None:
            return super().forward(hidden_states)
        return chunked_cross_entropy(self.weight, hidden_states, targets, chunk_size)


def chunked_cross_entropy(
    weight: torch.Tensor, hidden_states: torch.Tensor, targets: torch.Tensor, chunk_size: int | None = None
) -> torch.Tensor:
    """Summed cross entropy in fp32.

    Args:
        weight: vocabulary matrix [V, D].
        hidden_states: [S, D]; S may be 0.
        targets: token ids, int64 [S].
        chunk_size: maximum positions per chunk; None computes all logits at once. Chunks have equal sizes, give or take one.
            Each is computed under activation checkpointing, so that the logits of only one chunk exist at a time.

    Returns:
        fp32 scalar.
    """
    if chunk_size is None or len(targets) <= chunk_size:
        return _cross_entropy_sum(weight, hidden_states, targets)
    num_chunks = math.ceil(len(targets) / chunk_size)
    total = hidden_states.new_zeros((), dtype=torch.float32)
    for chunk, chunk_targets in zip(hidden_states.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        total = total + checkpoint(_cross_entropy_sum, weight, chunk, chunk_targets, use_reentrant=False, preserve_rng_state=False)
    return total


def _cross_entropy_sum(weight: torch.Tensor, hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden_states, weight).float(), targets, reduction="sum")
