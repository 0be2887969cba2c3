"""What stands where: classes of cells and patches, and what their loss leaves out."""

import math

import torch

from dataset.synthetic.scene import COLORS, HELD_OUT, SHAPES, generate_scene
from training.tiny_models.patch_classification import PatchClassifier, cells_to_patches, held_out_only, patch_labels


def test_every_cell_is_named() -> None:
    scenes = [generate_scene(1, "train", index) for index in range(50)]
    for scene, cells in zip(scenes, patch_labels(scenes).view(50, 3, 3, 3), strict=True):
        for row in range(3):
            for column in range(3):
                color, shape, digit = cells[row, column].tolist()
                there = [thing for thing in scene.things if (thing.row, thing.column) == (row, column)]
                if not there:
                    assert (color, shape, digit) == (len(COLORS), len(SHAPES), 10)
                    continue
                assert (COLORS[color], SHAPES[shape]) == (there[0].color, there[0].shape)
                assert digit == (10 if there[0].digit is None else there[0].digit)


def test_a_cells_patches_stand_together() -> None:
    cells = torch.arange(9).view(1, 9, 1)
    assert cells_to_patches(cells, 36).view(6, 6).tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
        [6, 6, 7, 7, 8, 8],
        [6, 6, 7, 7, 8, 8],
    ]


def test_only_held_out_combinations_are_left() -> None:
    scenes = [generate_scene(1, "unseen", index) for index in range(20)]
    left = held_out_only(patch_labels(scenes))
    for scene, cells in zip(scenes, left, strict=True):
        named = {(COLORS[color], SHAPES[shape]) for color, shape, _ in cells.tolist() if color < len(COLORS)}
        assert named == {(thing.color, thing.shape) for thing in scene.things if thing.held_out}
        assert named


class _Told(PatchClassifier):
    """Says what it is told."""

    said: tuple[torch.Tensor, ...]

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        del patches
        return self.said


def test_heads_that_know_the_scene_have_no_loss_and_nothing_is_learnt_about_held_out_combinations() -> None:
    torch.manual_seed(0)
    patch_classifier, told = PatchClassifier(8), _Told(8)
    cells = patch_labels([generate_scene(1, "train", index) for index in range(30)])
    patches = torch.randn(30, 36, 8)
    plain = patch_classifier.loss(patches, cells)
    assert 0.5 * math.log(9 * 8 * 11) < plain.item() < 2 * math.log(9 * 8 * 11)
    # Raising "star" where the thing is red, and "red" where it is a star, changes nothing.
    color, shape = COLORS.index("red"), SHAPES.index("star")
    assert ("red", "star") in HELD_OUT
    wanted = cells_to_patches(cells, 36)
    red, star = wanted[..., 0] == color, wanted[..., 1] == shape
    colors, shapes, digits = patch_classifier(patches)
    colors, shapes = colors.clone(), shapes.clone()
    shapes[..., shape] += 5.0 * red
    colors[..., color] += 5.0 * star
    told.said = colors, shapes, digits
    torch.testing.assert_close(told.loss(patches, cells), plain)

    told.said = tuple(torch.nn.functional.one_hot(wanted[..., kind], classes) * 50.0 for kind, classes in enumerate((9, 8, 11)))
    assert told.loss(patches, cells).item() < 1e-6
    assert set(told.accuracy(patches, cells).values()) == {1.0}
