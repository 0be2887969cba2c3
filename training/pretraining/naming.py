"""What stands where: SigLIP's patches learn to tell color, shape and digit of the thing in their cell, each by a head of its own.

Captions alone teach the pooled feature, and digits and new combinations hardly reach the patches that a VLM reads. Apart from
each other, color and shape are also told of things that combine them as no picture of training did. And a patch is drawn to the sum
of what its color, its shape, its digit and its place stand for, so that whoever reads it, having seen some combinations, reads others.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from dataset.scenes.scene import COLORS, GRID, HELD_OUT, SHAPES, Scene

_NOTHING = (len(COLORS), len(SHAPES), 10)
"""Classes of an empty cell, and of the digit of what is no sign; those before are the colors, shapes and digits."""
_CLASSES = tuple(nothing + 1 for nothing in _NOTHING)

_COMBINED = torch.tensor([[(color, shape) not in HELD_OUT for shape in (*SHAPES, "")] for color in (*COLORS, "")])
"""Whether training may show a color with a shape [colors, shapes]; nothing goes with everything."""

SUM_WEIGHT = 2.0
"""Of what is left beside the sum, against the cross entropies."""

_RIDGE = 1e-3
"""Each thing has one of each kind, so the vectors are determined up to a shift between kinds."""

READ_LAYER = -2
"""The hidden state that the heads read: the one that the demo's VLM gets."""


def names(scenes: Sequence[Scene]) -> torch.Tensor:
    """Classes [n, GRID * GRID, 3] of what stands in each cell, int64."""
    found = torch.tensor(_NOTHING).repeat(len(scenes), GRID * GRID, 1)
    for scene, cells in zip(scenes, found, strict=True):
        for thing in scene.things:
            digit = _NOTHING[2] if thing.digit is None else thing.digit
            cells[thing.row * GRID + thing.column] = torch.tensor([COLORS.index(thing.color), SHAPES.index(thing.shape), digit])
    return found


def held_out_only(names: torch.Tensor) -> torch.Tensor:
    """The names [n, cells, 3] without those of things whose combination of color and shape training shows."""
    wanted = torch.tensor([[COLORS.index(color), SHAPES.index(shape)] for color, shape in sorted(HELD_OUT)], device=names.device)
    held_out = (names[..., None, :2] == wanted).all(-1).any(-1, keepdim=True)
    return torch.where(held_out, names, torch.tensor(_NOTHING, device=names.device))


class Namer(nn.Module):
    """Heads that are thrown away after pre-training."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(_CLASSES))

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Patches [n, side * side, width] -> scores [n, side * side, classes] of colors, shapes and digits."""
        scores: tuple[torch.Tensor, ...] = self.heads(self.norm(patches)).split(list(_CLASSES), dim=-1)
        return scores

    def loss(self, patches: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Cross entropy in nats, its mean over patches, the three kinds added up, and what is `beside_the_sum`.
        names: [n, cells, 3].

        That a red thing is no star is not learnt: of colors and shapes, only those that training combines with the other
        are told apart.
        """
        wanted = of_patches(names, patches.shape[1])
        color, shape, digit = self.forward(patches)
        combined = _COMBINED.to(patches.device)
        color = color.masked_fill(~combined.T[wanted[..., 1]], -torch.inf)
        shape = shape.masked_fill(~combined[wanted[..., 0]], -torch.inf)
        total = SUM_WEIGHT * beside_the_sum(patches, wanted)
        for kind, scores in enumerate((color, shape, digit)):
            total = total + functional.cross_entropy(scores.flatten(0, 1).float(), wanted[..., kind].flatten())
        return total

    def accuracy(self, patches: torch.Tensor, names: torch.Tensor) -> dict[str, float]:
        """Share of patches of things, and of signs, whose color, shape and digit the heads tell."""
        wanted = of_patches(names, patches.shape[1])
        right = {}
        for kind, (name, scores) in enumerate(zip(("color", "shape", "digit"), self.forward(patches), strict=True)):
            there = wanted[..., kind] != _NOTHING[kind]
            if there.any():
                right[f"{name} at a patch"] = float((scores.argmax(-1) == wanted[..., kind])[there].float().mean())
        return right


def beside_the_sum(patches: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """Share of the variance of things' patches that is left beside the sum of one vector each for color, shape, digit and place.

    The vectors are those that leave the least, over all things of the batch. patches: [n, patches, width]; names: [n, patches, 3].
    """
    n, places, width = patches.shape
    there = names[..., 1] != _NOTHING[1]
    kinds = [functional.one_hot(names[..., kind], classes) for kind, classes in enumerate(_CLASSES)]
    kinds.append(torch.eye(places, dtype=names.dtype, device=names.device).expand(n, -1, -1))
    said = torch.cat(kinds, -1)[there].float()
    found = functional.layer_norm(patches.float(), (width,))[there]
    with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
        # Where they leave the least, their own gradient is zero.
        ridge = _RIDGE * torch.eye(said.shape[1], device=said.device)
        vectors = torch.linalg.solve(said.T @ said + ridge, said.T @ found)
    with torch.autocast(patches.device.type, enabled=False):
        left = found - said @ vectors
    share: torch.Tensor = left.square().sum() / (found - found.mean(0)).square().sum()
    return share


def of_patches(cells: torch.Tensor, patches: int) -> torch.Tensor:
    """What belongs to the cells [n, GRID * GRID, ...], for each of the patches [n, patches, ...] that they are made of."""
    share = round(patches**0.5) // GRID
    grid: torch.Tensor = cells.unflatten(1, (GRID, GRID)).repeat_interleave(share, 1).repeat_interleave(share, 2).flatten(1, 2)
    return grid
