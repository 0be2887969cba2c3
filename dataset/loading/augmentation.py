"""Random augmentation of training images. Boxes that their samples name follow what becomes of the images."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance, ImageOps, ImageStat

from dataset.bounding_box import Box
from dataset.config import AugmentationConfig
from dataset.loading.encoded_sample import EncodedSample
from dataset.sample import Sample

MIN_VISIBLE = 0.5
"""An image is not rotated when less than this share of one of its boxes would stay inside it."""


def augment(image: Image.Image, config: AugmentationConfig, seed_key: str) -> Image.Image:
    """Colour jitter, a small rotation and a mirroring of an RGB image. `seed_key` alone decides the amounts; the size does not change."""
    return augment_with_boxes(image, config, seed_key, ())[0]


def augment_with_boxes(
    image: Image.Image, config: AugmentationConfig, seed_key: str, boxes: Sequence[Box]
) -> tuple[Image.Image, list[Box]]:
    """As `augment`, with the boxes of regions of the image. A rotated region gets the upright box around it, as far as it is inside the
    image; an image of which a box would leave it is not rotated."""
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
    rotated = [box.rotated(angle, image.width / image.height) for box in boxes]
    if config.rotation and all(box.clipped().area >= MIN_VISIBLE * box.area for box in rotated):
        # Fill the corners with the mean colour: black corners would be a cue to learn from.
        mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=mean)
        boxes = [box.clipped() for box in rotated]
    if config.horizontal_flip and rng.random() < config.horizontal_flip:
        image = ImageOps.mirror(image)
        boxes = [box.mirrored() for box in boxes]
    return image, list(boxes)


def moves_boxes(config: AugmentationConfig | None) -> bool:
    """Whether an augmentation may change where something is in an image."""
    return config is not None and bool(config.rotation or config.horizontal_flip)


def augment_conversation(
    images: Sequence[Image.Image],
    samples: Sequence[Sample],
    config: AugmentationConfig,
    key: str,
    encode: Callable[[Sequence[Sample]], EncodedSample | None],
    encoded: EncodedSample,
    most_tokens: int | None,
) -> tuple[list[Image.Image], EncodedSample]:
    """The images of a conversation with random changes, and its tokens, with the boxes of the changed images.

    Args:
        images: Its images, which all of its samples share.
        samples: Its samples.
        config: What changes.
        key: Decides the amounts.
        encode: Encodes the samples with other boxes.
        encoded: The tokens as they are without changes.
        most_tokens: For how many tokens there is room; where other boxes need more, the image keeps its geometry. None: for any number.
    """
    if not moves_boxes(config) or not any(sample.regions for sample in samples):
        return [augment(image, config, f"{key}/{i}") for i, image in enumerate(images)], encoded
    changed, moved = [], [[region.box for region in sample.regions] for sample in samples]
    for i, image in enumerate(images):
        places = [(s, r) for s, sample in enumerate(samples) for r, region in enumerate(sample.regions) if region.image == i]
        image, boxes = augment_with_boxes(image, config, f"{key}/{i}", [moved[s][r] for s, r in places])
        changed.append(image)
        for (s, r), box in zip(places, boxes, strict=True):
            moved[s][r] = box
    again = encode([sample.with_boxes(boxes) for sample, boxes in zip(samples, moved, strict=True)])
    if again is not None and (most_tokens is None or len(again) <= most_tokens):
        return changed, again
    still = dataclasses.replace(config, rotation=0.0, horizontal_flip=0.0)
    return [augment(image, still, f"{key}/{i}") for i, image in enumerate(images)], encoded
