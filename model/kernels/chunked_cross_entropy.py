"""Cross entropy over the vocabulary in bounded memory.

In: hidden states at supervised positions and the tokens that follow. Out: the sum of the losses.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BYTES_A_SCORE = 14
"""Most memory at once for a score of one token: in the backward pass, its log-probability and two gradients in fp32, and
the gradient in bf16 that goes on into the vocabulary product."""


def positions_at_once(memory_gib: float, vocabulary: int) -> int:
    """Positions whose scores over the whole vocabulary fit into this much memory; at least one."""
    return max(1, int(memory_gib * 2**30 / (BYTES_A_SCORE * vocabulary)))


def summed_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, at_once: int | None = None) -> torch.Tensor:
    """Sum of the cross entropies in fp32: hidden [S, D], targets int64 [S] -> scalar.

    head: the vocabulary product, [n, D] -> [n, vocabulary]. Where S is more than at_once, it is made for equal chunks one
    after the other and again in the backward pass, so no more than a chunk's scores exist at any time.
    """
    if at_once is None or len(targets) <= at_once:
        return _summed(head, hidden, targets)
    chunks = math.ceil(len(targets) / at_once)
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True):
        total = total + checkpoint(_summed, head, part, wanted, use_reentrant=False, preserve_rng_state=False)
    return total


def _summed(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
