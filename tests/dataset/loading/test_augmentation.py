"""Augmentation changes images slightly, depends on the key alone, and mirrors only where that is asked for."""

import numpy as np
import pytest
from PIL import Image

from dataset.config import AugmentationConfig
from dataset.loading.augmentation import augment


def image() -> Image.Image:
    """Dark on the left, light on the right, red at the bottom, so that flips and rotations can be detected."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[...] = np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None]
    pixels[36:, :, 1:] //= 4
    return Image.fromarray(pixels)


def test_zero_amounts_change_nothing() -> None:
    assert np.array_equal(np.asarray(augment(image(), AugmentationConfig(), "key")), np.asarray(image()))


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "rotation"])
def test_each_kind_changes_the_image_as_a_function_of_the_key(kind: str) -> None:
    config = AugmentationConfig(**{kind: 10.0 if kind == "rotation" else 0.4})
    first, again, other = (np.asarray(augment(image(), config, key)) for key in ("0/3/sample", "0/3/sample", "0/4/sample"))
    assert first.shape == (48, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.asarray(image()))


def test_amounts_are_bounds_of_the_factors() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    values = [np.asarray(augment(grey, AugmentationConfig(brightness=0.2), str(i))).mean() for i in range(200)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120


def test_images_are_mirrored_as_often_as_asked_and_else_only_changed() -> None:
    config = AugmentationConfig(horizontal_flip=0.25)
    own, mirrored = np.asarray(image()), np.asarray(image())[:, ::-1]
    results = [np.asarray(augment(image(), config, str(i))) for i in range(400)]
    assert all(np.array_equal(result, own) or np.array_equal(result, mirrored) for result in results)
    assert 70 <= sum(np.array_equal(result, mirrored) for result in results) <= 130


def test_images_are_never_flipped_by_default() -> None:
    config = AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.3, rotation=15.0)
    for i in range(100):
        pixels = np.asarray(augment(image(), config, str(i))).astype(int)
        assert pixels[16:32, :16].mean() < pixels[16:32, -16:].mean()
        redness = pixels[..., 0] - pixels[..., 1]
        assert redness[-6:, 16:48].mean() > redness[:6, 16:48].mean()
