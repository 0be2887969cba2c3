"""Checks of a record that is read while training: its images, as a merge checks them, and the split that it belongs to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataset.bounding_box import Region, fill
from dataset.build.image_validation import read_image
from dataset.build.splits import split_by_hash, text_digest
from dataset.config import DataConfig
from dataset.loading.image_io import ImageError, measure_image, printable_path
from dataset.record_validation import InvalidRecordError, upright_boxes
from dataset.sample import Message, Sample
from dataset.source_base import Split
from dataset.source_config import Source
from dataset.sources.record import ImageSource, RawSample, RejectedRecord

HeldOut = Mapping[str, Split]
"""The split of images, by the SHA-256 of their files, and of texts without images by theirs, that another one's split decides."""


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """A sample whose images can be used.

    Args:
        sample: The sample; its image ids are the positions of the images in `images`.
        images: Image files, or encoded images that came inside the annotation file.
        sizes: Upright width and height of each in pixels.
    """

    sample: Sample
    images: tuple[ImageSource, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def num_bytes(self) -> int:
        """Size of the images that are held in memory."""
        return sum(len(image) for image in self.images if isinstance(image, bytes))


def check_sample(raw: RawSample, source: Source, name: str, config: DataConfig, held_out: HeldOut) -> CheckedSample | RejectedRecord:
    """Read and decode the images of a record, and assign its split as a merge does.

    Args:
        raw: The record, valid apart from its images.
        source: Its source.
        name: Name of the source.
        config: Limit of the pixels, fractions and seed of the splits.
        held_out: What is known of images that stand in several splits.

    Raises:
        StorageError: Object storage cannot be used, so that nothing is known of its images.
    """
    sizes, orientations, digests, errors = [], [], [], []
    for number, image in enumerate(raw.images):
        described = printable_path(image) if not isinstance(image, bytes) else f"image {number + 1} of {raw.location}"
        try:
            data = image if isinstance(image, bytes) else read_image(str(image), config.max_pixels)
            digests.append(hashlib.sha256(data).hexdigest())
            measured = measure_image(data, described, config.max_pixels)
            sizes.append(measured.size)
            orientations.append(measured.orientation)
        except ImageError as error:
            errors.append(error)
    if errors:
        return RejectedRecord(raw.location, errors[0].reason, "; ".join(dict.fromkeys(map(str, errors))))
    try:
        boxes = upright_boxes(raw.boxes, sizes, orientations)
    except InvalidRecordError as error:
        return RejectedRecord(raw.location, error.reason, error.detail)
    keys = digests or [text_digest([message.content for message in raw.messages], raw.targets)]
    messages, targets, regions = raw.messages, raw.targets, tuple[Region, ...]()
    if boxes:
        filled, found = fill([*(message.content for message in raw.messages), *raw.targets], boxes)
        messages = tuple(Message(message.role, text) for message, text in zip(raw.messages, filled, strict=False))
        targets, regions = tuple(filled[len(messages) :]), tuple(found)
    sample = Sample(
        sample_id=f"{name}/{raw.key}".replace("#", "_"),
        image_ids=tuple(range(len(raw.images))),
        source=name,
        task=raw.task,
        language=raw.language,
        split=split_of(keys, source.fixed_split or raw.split, config, held_out),
        messages=messages,
        targets=targets,
        answers=targets if raw.answers == raw.targets else raw.answers,
        prompt=source.prompt_in(raw.language, raw.task),
        category=raw.category,
        regions=regions,
    )
    return CheckedSample(sample, raw.images, tuple(sizes))


def split_of(keys: Sequence[str], own: Split | None, config: DataConfig, held_out: HeldOut) -> Split:
    """The split of a sample on its own: what is known of its images, else its own one, else that of a hash of its content.

    Args:
        keys: SHA-256 of its images; without images, that of its texts.
        own: The split that its source or its record states.
        config: Fractions and seed.
        held_out: See `check_sample`.
    """
    known = next((held_out[key] for key in keys if key in held_out), None)
    return known or own or split_by_hash(min(keys), config.split, config.seed)
