"""Image corruptions: they increase with strength and are deterministic in image and key."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evaluation.config import Corruption
from evaluation.robustness import corrupt


@pytest.fixture(scope="module")
def image() -> Image.Image:
    stripes = Image.new("RGB", (120, 80), "white")
    draw = ImageDraw.Draw(stripes)
    for i in range(12):
        draw.rectangle((10 * i, 0, 10 * i + 4, 80), fill=(20 * i, 90, 255 - 20 * i))
    return stripes


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_each_strength_changes_the_image_more_than_the_one_before(image: Image.Image, kind: Corruption) -> None:
    distances = [distance(image, corrupt(image, kind, strength, "a")) for strength in range(1, 6)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert len(set(distances)) == 5


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_the_same_key_gives_the_same_image_of_the_same_size(image: Image.Image, kind: Corruption) -> None:
    before = image.tobytes()
    first, second = corrupt(image, kind, 3, "a"), corrupt(image, kind, 3, "a")
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == (image.size, "RGB")
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", ["noise", "occlusion"])
def test_another_key_gives_other_random_numbers(image: Image.Image, kind: Corruption) -> None:
    assert corrupt(image, kind, 3, "a").tobytes() != corrupt(image, kind, 3, "b").tobytes()


def test_the_occluded_area_is_as_specified() -> None:
    white = Image.new("RGB", (200, 100), "white")
    occluded = (np.asarray(corrupt(white, "occlusion", 3, "a"))[..., 0] == 128).mean()
    assert occluded == pytest.approx(0.2, abs=0.01)


def test_darkness_scales_the_brightness() -> None:
    assert corrupt(Image.new("RGB", (4, 4), (200, 100, 10)), "dark", 2, "a").getpixel((0, 0)) == (100, 50, 5)
