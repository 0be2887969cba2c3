"""Random augmentation of training images."""

import hashlib
import random

from PIL import Image, ImageEnhance, ImageOps, ImageStat

from dataset.config import AugmentationConfig


def augment(image: Image.Image, config: AugmentationConfig, seed_key: str) -> Image.Image:
    """Colour jitter, a small rotation and a mirroring of an RGB image. `seed_key` alone decides the amounts; the size does not change."""
    rng = random.Random(hashlib.blake2b(seed_key.encode(), digest_size=8).digest())
    changes = (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
    )
    for enhance, amount in changes:
        factor = 1 + rng.uniform(-amount, amount)
        if amount:
            image = enhance(image).enhance(factor)
    angle = rng.uniform(-config.rotation, config.rotation)
    if config.rotation:
        # Fill the corners with the mean colour: black corners would be a cue to learn from.
        mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=mean)
    if config.horizontal_flip and rng.random() < config.horizontal_flip:
        image = ImageOps.mirror(image)
    return image
