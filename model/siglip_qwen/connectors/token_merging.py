"""Fewer image tokens: the most similar patches are merged (Token Merging, Bolya et al. 2023, arXiv:2210.09461).

Shapes: N images, P patches, K patches that are left, C hidden size.
"""

import math

import torch
from torch.nn import functional


def num_kept(tokens: int, keep_ratio: float) -> int:
    """K of this many patches."""
    return max(1, math.ceil(keep_ratio * tokens))


def merge_tokens(features: torch.Tensor, kept: int) -> torch.Tensor:
    """Patch features [N, P, C] -> [N, K, C], each the mean of the patches that were merged into it, in the order of the patches.

    In each round every second token may be merged into the most similar one of the others; the most similar pairs are, until `kept`
    tokens are left, so that a round at most halves their number. What is merged is chosen without gradients.
    """
    if features.shape[1] <= kept:
        return features
    sizes = torch.ones_like(features[..., :1])
    while features.shape[1] > kept:
        features, sizes = _merge_round(features, sizes, kept)
    return features


def _merge_round(features: torch.Tensor, sizes: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A round of merging: features [N, P, C] and how many patches each is the mean of, [N, P, 1]."""
    num_images, tokens, _ = features.shape
    positions = torch.arange(tokens, device=features.device)
    sources, targets = positions[::2], positions[1::2]
    with torch.no_grad():
        directions = functional.normalize(features.float(), dim=-1)
        similarity, partner = (directions[:, sources] @ directions[:, targets].transpose(1, 2)).max(-1)
        merged = similarity.topk(min(tokens - kept, len(sources)), dim=-1).indices
        destination = targets[partner].gather(1, merged)  # [N, merged]
        origin = sources[merged]
        is_left = torch.ones(num_images, tokens, dtype=torch.bool, device=features.device).scatter_(1, origin, False)
        left = is_left.nonzero()[:, 1].view(num_images, -1)
    sums, counts = features * sizes, sizes
    sums = sums.scatter_add(1, _rows(destination, sums), sums.gather(1, _rows(origin, sums)))
    counts = counts.scatter_add(1, _rows(destination, counts), counts.gather(1, _rows(origin, counts)))
    counts = counts.gather(1, _rows(left, counts))
    return sums.gather(1, _rows(left, sums)) / counts, counts


def _rows(index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Indices [N, k] of tokens for all their channels, [N, k, C]."""
    return index.unsqueeze(-1).expand(-1, -1, values.shape[-1])
