"""Patch classification: SigLIP's patches are trained to predict color, shape and digit of the object in their grid cell.

Captions alone train the pooled feature; digits and unseen combinations are hardly represented in the patches that a VLM reads.
Separate heads for color and shape generalise to combinations that no training image shows.

Shapes: B batch, C grid cells (GRID * GRID), P patches, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from dataset.synthetic.scene import COLORS, GRID, HELD_OUT, SHAPES, Scene

_EMPTY_CLASSES = (len(COLORS), len(SHAPES), 10)
"""Last class of color, shape and digit: an empty cell, for the digit also an object that is not a sign."""
_CLASSES = tuple(empty_class + 1 for empty_class in _EMPTY_CLASSES)

_ALLOWED_COMBINATIONS = torch.tensor([[(color, shape) not in HELD_OUT for shape in (*SHAPES, "")] for color in (*COLORS, "")])
"""Whether a color and a shape may occur together in training, bool [color classes, shape classes]; the empty class goes with all."""

VISION_FEATURE_LAYER = -2
"""Index of the hidden state that the heads read: the vision feature layer of the demo's VLM."""


def patch_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Color, shape and digit class of every grid cell, int64 [B, C, 3]."""
    labels = torch.tensor(_EMPTY_CLASSES).repeat(len(scenes), GRID * GRID, 1)
    for scene, cells in zip(scenes, labels, strict=True):
        for thing in scene.things:
            digit = _EMPTY_CLASSES[2] if thing.digit is None else thing.digit
            cells[thing.row * GRID + thing.column] = torch.tensor([COLORS.index(thing.color), SHAPES.index(thing.shape), digit])
    return labels


def held_out_only(patch_labels: torch.Tensor) -> torch.Tensor:
    """The labels [B, C, 3] with every object replaced by an empty cell unless its combination of color and shape is held out."""
    held_out_pairs = torch.tensor(
        [[COLORS.index(color), SHAPES.index(shape)] for color, shape in sorted(HELD_OUT)], device=patch_labels.device
    )
    held_out = (patch_labels[..., None, :2] == held_out_pairs).all(-1).any(-1, keepdim=True)
    return torch.where(held_out, patch_labels, torch.tensor(_EMPTY_CLASSES, device=patch_labels.device))


class PatchClassifier(nn.Module):
    """Linear classification heads on the patches; used in pre-training only and not saved with the model."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(_CLASSES))

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Patch features [B, P, D] -> logits [B, P, classes] of color, of shape and of digit."""
        logits: tuple[torch.Tensor, ...] = self.heads(self.norm(patches)).split(list(_CLASSES), dim=-1)
        return logits

    def loss(self, patches: torch.Tensor, patch_labels: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropies of color, shape and digit, each averaged over patches, in nats.

        Held-out combinations are masked out of the softmax: otherwise the heads would learn that a red object is never a star.
        Patch features [B, P, D], classes per grid cell [B, C, 3].
        """
        targets = cells_to_patches(patch_labels, patches.shape[1])
        color, shape, digit = self.forward(patches)
        allowed = _ALLOWED_COMBINATIONS.to(patches.device)
        color = color.masked_fill(~allowed.T[targets[..., 1]], -torch.inf)
        shape = shape.masked_fill(~allowed[targets[..., 0]], -torch.inf)
        total = patches.new_zeros(())
        for kind, logits in enumerate((color, shape, digit)):
            total = total + functional.cross_entropy(logits.flatten(0, 1).float(), targets[..., kind].flatten())
        return total

    def accuracy(self, patches: torch.Tensor, patch_labels: torch.Tensor) -> dict[str, float]:
        """Classification accuracy of color and shape over patches with an object, and of digit over patches with a sign."""
        targets = cells_to_patches(patch_labels, patches.shape[1])
        accuracy = {}
        for kind, (name, logits) in enumerate(zip(("color", "shape", "digit"), self.forward(patches), strict=True)):
            is_present = targets[..., kind] != _EMPTY_CLASSES[kind]
            if is_present.any():
                accuracy[f"{name} at a patch"] = float((logits.argmax(-1) == targets[..., kind])[is_present].float().mean())
        return accuracy


def cells_to_patches(cells: torch.Tensor, patches: int) -> torch.Tensor:
    """Repeat values of grid cells [B, C, ...] for the patches of each cell [B, P, ...]. `patches` is P, a square number."""
    patches_per_cell = round(patches**0.5) // GRID
    grid: torch.Tensor = cells.unflatten(1, (GRID, GRID))
    return grid.repeat_interleave(patches_per_cell, 1).repeat_interleave(patches_per_cell, 2).flatten(1, 2)
