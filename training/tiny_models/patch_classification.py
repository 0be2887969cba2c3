"""What stands where: SigLIP's patches learn to tell color, shape and digit of the thing in their cell, each by a head of its own.

Captions alone teach the pooled feature, and digits and new combinations hardly reach the patches that a VLM reads. Apart from
each other, color and shape are also told of things that combine them as no picture of training did.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from dataset.synthetic.scene import COLORS, GRID, HELD_OUT, SHAPES, Scene

_EMPTY_CLASSES = (len(COLORS), len(SHAPES), 10)
"""Classes of an empty cell, and of the digit of what is no sign; those before are the colors, shapes and digits."""
_CLASSES = tuple(empty_class + 1 for empty_class in _EMPTY_CLASSES)

_ALLOWED_COMBINATIONS = torch.tensor([[(color, shape) not in HELD_OUT for shape in (*SHAPES, "")] for color in (*COLORS, "")])
"""Whether training may show a color with a shape [colors, shapes]; nothing goes with everything."""

VISION_FEATURE_LAYER = -2
"""The hidden state that the heads read: the one that the demo's VLM gets."""


def patch_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Classes [n, GRID * GRID, 3] of what stands in each cell, int64."""
    found = torch.tensor(_EMPTY_CLASSES).repeat(len(scenes), GRID * GRID, 1)
    for scene, cells in zip(scenes, found, strict=True):
        for thing in scene.things:
            digit = _EMPTY_CLASSES[2] if thing.digit is None else thing.digit
            cells[thing.row * GRID + thing.column] = torch.tensor([COLORS.index(thing.color), SHAPES.index(thing.shape), digit])
    return found


def held_out_only(patch_labels: torch.Tensor) -> torch.Tensor:
    """The names [n, cells, 3] without those of things whose combination of color and shape training shows."""
    wanted = torch.tensor([[COLORS.index(color), SHAPES.index(shape)] for color, shape in sorted(HELD_OUT)], device=patch_labels.device)
    held_out = (patch_labels[..., None, :2] == wanted).all(-1).any(-1, keepdim=True)
    return torch.where(held_out, patch_labels, torch.tensor(_EMPTY_CLASSES, device=patch_labels.device))


class PatchClassifier(nn.Module):
    """Heads that are thrown away after pre-training."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(_CLASSES))

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Patches [n, side * side, width] -> scores [n, side * side, classes] of colors, shapes and digits."""
        scores: tuple[torch.Tensor, ...] = self.heads(self.norm(patches)).split(list(_CLASSES), dim=-1)
        return scores

    def loss(self, patches: torch.Tensor, patch_labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy in nats, its mean over patches, the three kinds added up. names: [n, cells, 3].

        That a red thing is no star is not learnt: of colors and shapes, only those that training combines with the other
        are told apart.
        """
        wanted = cells_to_patches(patch_labels, patches.shape[1])
        color, shape, digit = self.forward(patches)
        allowed = _ALLOWED_COMBINATIONS.to(patches.device)
        color = color.masked_fill(~allowed.T[wanted[..., 1]], -torch.inf)
        shape = shape.masked_fill(~allowed[wanted[..., 0]], -torch.inf)
        total = patches.new_zeros(())
        for kind, scores in enumerate((color, shape, digit)):
            total = total + functional.cross_entropy(scores.flatten(0, 1).float(), wanted[..., kind].flatten())
        return total

    def accuracy(self, patches: torch.Tensor, patch_labels: torch.Tensor) -> dict[str, float]:
        """Share of patches of things, and of signs, whose color, shape and digit the heads tell."""
        wanted = cells_to_patches(patch_labels, patches.shape[1])
        right = {}
        for kind, (name, scores) in enumerate(zip(("color", "shape", "digit"), self.forward(patches), strict=True)):
            is_present = wanted[..., kind] != _EMPTY_CLASSES[kind]
            if is_present.any():
                right[f"{name} at a patch"] = float((scores.argmax(-1) == wanted[..., kind])[is_present].float().mean())
        return right


def cells_to_patches(cells: torch.Tensor, patches: int) -> torch.Tensor:
    """What belongs to the cells [n, GRID * GRID, ...], for each of the patches [n, patches, ...] that they are made of."""
    patches_per_cell = round(patches**0.5) // GRID
    grid: torch.Tensor = (
        cells.unflatten(1, (GRID, GRID)).repeat_interleave(patches_per_cell, 1).repeat_interleave(patches_per_cell, 2).flatten(1, 2)
    )
    return grid
