"""Image corruptions of five strengths: blur, noise, darkness, occlusion, JPEG compression. Deterministic in image and key."""

import hashlib
import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from evaluation.config import Corruption

_BLUR_SIGMA = (0.004, 0.008, 0.014, 0.022, 0.032)  # as a fraction of the shorter side
_NOISE_STD = (0.04, 0.08, 0.14, 0.22, 0.32)  # for pixel values in 0..1
_BRIGHTNESS = (0.7, 0.5, 0.35, 0.22, 0.12)  # factor of each pixel value
_OCCLUDED_AREA = (0.05, 0.10, 0.20, 0.30, 0.45)  # as a fraction of the image area
_JPEG_QUALITY = (30, 18, 12, 8, 4)
_GREY = (128, 128, 128)


def corrupt(image: Image.Image, kind: Corruption, strength: int, key: str) -> Image.Image:
    """Return a corrupted RGB image of the same size.

    Args:
        image: the image
        kind: kind of corruption
        strength: 1 (weak) to 5 (strong)
        key: identifies the image; seeds the random numbers together with kind and strength
    """
    digest = hashlib.blake2b(f"{key}/{kind}/{strength}".encode(), digest_size=8).digest()
    return CORRUPTIONS[kind](image.convert("RGB"), strength - 1, np.random.default_rng(int.from_bytes(digest, "big")))


def _blur(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    return image.filter(ImageFilter.GaussianBlur(_BLUR_SIGMA[level] * min(image.size)))


def _noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * (255 * _NOISE_STD[level])
    return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))


def _dark(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    return image.point(lambda value: round(value * _BRIGHTNESS[level]))


def _occlusion(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Cover a randomly placed rectangle of the image's aspect ratio with grey."""
    width, height = (max(1, round(side * _OCCLUDED_AREA[level] ** 0.5)) for side in image.size)
    left, top = (int(rng.integers(0, side - occluded + 1)) for side, occluded in zip(image.size, (width, height), strict=True))
    occluded = image.copy()
    occluded.paste(_GREY, (left, top, left + width, top + height))
    return occluded


def _jpeg(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    del rng
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY[level])
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


CORRUPTIONS: Mapping[Corruption, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "dark": _dark,
    "occlusion": _occlusion,
    "jpeg": _jpeg,
}
