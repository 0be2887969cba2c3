"""Pictures made worse in known steps: blur, noise, darkness, occlusion, JPEG of low quality. Pure functions of picture and key."""

import hashlib
import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from evaluation.config import Corruption

_SIGMA = (0.004, 0.008, 0.014, 0.022, 0.032)  # of the shorter side
_NOISE = (0.04, 0.08, 0.14, 0.22, 0.32)  # standard deviation; the pixels' range is 1
_BRIGHTNESS = (0.7, 0.5, 0.35, 0.22, 0.12)
_COVERED = (0.05, 0.10, 0.20, 0.30, 0.45)  # of the area
_QUALITY = (30, 18, 12, 8, 4)
_GREY = (128, 128, 128)


def corrupt(picture: Image.Image, kind: Corruption, strength: int, key: str) -> Image.Image:
    """An RGB picture of the same size. strength: 1 (weak) to 5; key: stands for the picture, so that chance falls the same again."""
    digest = hashlib.blake2b(f"{key}/{kind}/{strength}".encode(), digest_size=8).digest()
    return CORRUPTIONS[kind](picture.convert("RGB"), strength - 1, np.random.default_rng(int.from_bytes(digest, "big")))


def _blur(picture: Image.Image, step: int, chance: np.random.Generator) -> Image.Image:
    del chance
    return picture.filter(ImageFilter.GaussianBlur(_SIGMA[step] * min(picture.size)))


def _noise(picture: Image.Image, step: int, chance: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32)
    noisy = pixels + chance.standard_normal(pixels.shape, dtype=np.float32) * (255 * _NOISE[step])
    return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))


def _dark(picture: Image.Image, step: int, chance: np.random.Generator) -> Image.Image:
    del chance
    return picture.point(lambda value: round(value * _BRIGHTNESS[step]))


def _occlusion(picture: Image.Image, step: int, chance: np.random.Generator) -> Image.Image:
    """One grey rectangle of the picture's own proportions, anywhere inside."""
    width, height = (max(1, round(side * _COVERED[step] ** 0.5)) for side in picture.size)
    left, top = (int(chance.integers(0, side - covered + 1)) for side, covered in zip(picture.size, (width, height), strict=True))
    covered = picture.copy()
    covered.paste(_GREY, (left, top, left + width, top + height))
    return covered


def _jpeg(picture: Image.Image, step: int, chance: np.random.Generator) -> Image.Image:
    del chance
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY[step])
    with Image.open(buffer) as again:
        return again.convert("RGB")


CORRUPTIONS: Mapping[Corruption, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "dark": _dark,
    "occlusion": _occlusion,
    "jpeg": _jpeg,
}
