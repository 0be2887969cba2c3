"""Random changes of training pictures. There are no flips: they turn left into right."""

import hashlib
import random

from PIL import Image, ImageEnhance, ImageStat

from dataset.config import AugmentationConfig


def augment(image: Image.Image, config: AugmentationConfig, seed_key: str) -> Image.Image:
    """Colour jitter and a small rotation of an RGB picture, decided by `seed_key` alone; the size stays."""
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
        # Corners that turn up empty get the mean colour, so that no black edge can be learnt.
        mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=mean)
    return image
