"""Boxes that a record names: in `objects` apart from its texts, or in the texts themselves.

`objects` is that of ms-swift: {"bbox": [[x1, y1, x2, y2], ...], "ref": [name, ...], "bbox_type": "real" | "norm1" | "norm1000",
"image_id": [index of the image, ...]}, of which only `bbox` is needed. The k-th box stands where the k-th `<bbox>` of the texts is, the
k-th name where the k-th `<ref-object>` is; texts without `<bbox>` name no box. In the texts themselves, boxes are those of Qwen's data:
"bbox_2d": [x1, y1, x2, y2].
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from dataset.bounding_box import BOX_PLACEHOLDER, FULL, RawBox, find_boxes, is_box_answer
from dataset.record_validation import DropReason, InvalidRecordError, check_boxes
from dataset.sample import Message
from dataset.source_base import BoxedSource, BoxType
from dataset.sources.record import RawSample, require_list, require_object

NAME_PLACEHOLDER = "<ref-object>"
"""Stands for the name of an object."""

_BOX_KEY = re.compile(r'"bbox_2d"\s*:\s*\Z')


def with_boxes(source: BoxedSource, sample: RawSample, objects: Any) -> RawSample:
    """The sample with the boxes that its record names.

    Args:
        source: Says what the coordinates are.
        sample: The conversation, without boxes.
        objects: The record's field of this name; None if it has none.

    Raises:
        InvalidRecordError: A box is not four numbers, or boxes or names are not as many as their placeholders.
    """
    texts = [*(message.content for message in sample.messages), *sample.targets]
    if objects is not None and any(BOX_PLACEHOLDER in text for text in texts):
        texts, boxes = _from_objects(source, texts, require_object(objects))
        check_boxes(texts, boxes, len(sample.images))
    elif source.bbox_in_text is not None:
        texts, boxes = _from_texts(source, texts, source.bbox_in_text)
    else:
        return sample
    messages = tuple(Message(message.role, text) for message, text in zip(sample.messages, texts, strict=False))
    targets = tuple(texts[len(messages) :])
    is_grounding = boxes and all(BOX_PLACEHOLDER in target and is_box_answer(target) for target in targets)
    return dataclasses.replace(
        sample, messages=messages, targets=targets, answers=targets, boxes=tuple(boxes), task="grounding" if is_grounding else sample.task
    )


def parse_box(corners: Any, bbox_type: BoxType, image: int = 0, is_stored: bool = False) -> RawBox:
    """A box from four numbers. Raises InvalidRecordError when they are none."""
    if not isinstance(corners, list | tuple) or len(corners) != 4 or not all(map(_is_number, corners)):
        raise InvalidRecordError(DropReason.BOX, f"a box is {corners!r:.100}; expected four numbers, [x1, y1, x2, y2]")
    factor = FULL if bbox_type == "norm1" else 1
    x1, y1, x2, y2 = (factor * float(value) for value in corners)
    return RawBox(image, (x1, y1, x2, y2), bbox_type == "real", is_stored)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_objects(source: BoxedSource, texts: Sequence[str], objects: dict[str, Any]) -> tuple[list[str], list[RawBox]]:
    """The texts with the names of the objects, and their boxes."""
    entries, names = require_list(objects.get("bbox"), "objects.bbox"), require_list(objects.get("ref") or [], "objects.ref")
    bbox_type = objects.get("bbox_type") or source.bbox_type
    if bbox_type not in ("real", "norm1", "norm1000"):
        raise InvalidRecordError(DropReason.BOX, f"objects.bbox_type is {bbox_type!r:.100}; expected real, norm1 or norm1000")
    images = objects.get("image_id") or [0] * len(entries)
    if not isinstance(images, list) or len(images) != len(entries) or not all(type(image) is int for image in images):
        raise InvalidRecordError(DropReason.BOX, f"objects.image_id is {images!r:.100}; expected the index of an image for each box")
    if not all(isinstance(name, str) for name in names):
        raise InvalidRecordError(DropReason.ANSWER_TYPE, f"objects.ref is {names!r:.100}; expected a list of texts")
    count = sum(text.count(NAME_PLACEHOLDER) for text in texts)
    if count not in (0, len(names)):
        raise InvalidRecordError(DropReason.BOX_COUNT, f"{count} {NAME_PLACEHOLDER} placeholders for {len(names)} names in objects.ref")
    remaining = iter(names)
    named = [re.sub(NAME_PLACEHOLDER, lambda _: next(remaining), text) for text in texts]
    is_stored = source.bbox_rotation == "stored"
    return named, [parse_box(entry, bbox_type, image, is_stored) for entry, image in zip(entries, images, strict=True)]


def _from_texts(source: BoxedSource, texts: Sequence[str], bbox_type: BoxType) -> tuple[list[str], list[RawBox]]:
    """The texts with placeholders in the places of the boxes that have the key bbox_2d, and these. All belong to the first image."""
    boxes: list[RawBox] = []
    found = []
    for text in texts:
        template, end = "", 0
        for match in find_boxes(text):
            if _BOX_KEY.search(text, 0, match.start()):
                template, end = f"{template}{text[end : match.start()]}{BOX_PLACEHOLDER}", match.end()
                numbers = [float(number) for number in match.groups()]
                boxes.append(parse_box(numbers, bbox_type, is_stored=source.bbox_rotation == "stored"))
        found.append(template + text[end:])
    return found, boxes
