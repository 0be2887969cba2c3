"""Patch classification: labels of cells and patches, and the held-out combinations that the loss masks."""

import math

import torch

from dataset.synthetic.scene import COLORS, HELD_OUT, SHAPES, generate_scene
from training.tiny_models.patch_classification import PatchClassifier, cells_to_patches, held_out_only, patch_labels


def test_every_cell_has_the_labels_of_its_object() -> None:
    scenes = [generate_scene(1, "train", index) for index in range(50)]
    for scene, cells in zip(scenes, patch_labels(scenes).view(50, 3, 3, 3), strict=True):
        for row in range(3):
            for column in range(3):
                color, shape, digit = cells[row, column].tolist()
                objects = [thing for thing in scene.things if (thing.row, thing.column) == (row, column)]
                if not objects:
                    assert (color, shape, digit) == (len(COLORS), len(SHAPES), 10)
                    continue
                assert (COLORS[color], SHAPES[shape]) == (objects[0].color, objects[0].shape)
                assert digit == (10 if objects[0].digit is None else objects[0].digit)


def test_a_cells_patches_form_a_block() -> None:
    cells = torch.arange(9).view(1, 9, 1)
    assert cells_to_patches(cells, 36).view(6, 6).tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
        [6, 6, 7, 7, 8, 8],
        [6, 6, 7, 7, 8, 8],
    ]


def test_only_labels_of_held_out_combinations_remain() -> None:
    scenes = [generate_scene(1, "unseen", index) for index in range(20)]
    remaining = held_out_only(patch_labels(scenes))
    for scene, cells in zip(scenes, remaining, strict=True):
        combinations = {(COLORS[color], SHAPES[shape]) for color, shape, _ in cells.tolist() if color < len(COLORS)}
        assert combinations == {(thing.color, thing.shape) for thing in scene.things if thing.held_out}
        assert combinations


class _FixedClassifier(PatchClassifier):
    """Returns the logits that a test sets."""

    logits: tuple[torch.Tensor, ...]

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        del patches
        return self.logits


def test_right_logits_have_no_loss_and_logits_of_held_out_combinations_do_not_change_it() -> None:
    torch.manual_seed(0)
    patch_classifier, fixed = PatchClassifier(8), _FixedClassifier(8)
    cells = patch_labels([generate_scene(1, "train", index) for index in range(30)])
    patches = torch.randn(30, 36, 8)
    unchanged = patch_classifier.loss(patches, cells)
    assert 0.5 * math.log(9 * 8 * 11) < unchanged.item() < 2 * math.log(9 * 8 * 11)
    # Raising the logit of "star" for red objects and of "red" for stars does not change the loss.
    color, shape = COLORS.index("red"), SHAPES.index("star")
    assert ("red", "star") in HELD_OUT
    targets = cells_to_patches(cells, 36)
    red, star = targets[..., 0] == color, targets[..., 1] == shape
    colors, shapes, digits = patch_classifier(patches)
    colors, shapes = colors.clone(), shapes.clone()
    shapes[..., shape] += 5.0 * red
    colors[..., color] += 5.0 * star
    fixed.logits = colors, shapes, digits
    torch.testing.assert_close(fixed.loss(patches, cells), unchanged)

    fixed.logits = tuple(torch.nn.functional.one_hot(targets[..., kind], classes) * 50.0 for kind, classes in enumerate((9, 8, 11)))
    assert fixed.loss(patches, cells).item() < 1e-6
    assert set(fixed.accuracy(patches, cells).values()) == {1.0}
