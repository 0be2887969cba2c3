"""Boxes of regions of an image: the one form in which texts name them, where they come from, and how well two of them agree.

A box is left, top, right and bottom in thousandths of the width and height of the upright image, 0 to 1000, as Qwen3-VL writes boxes
(cookbook "2d grounding", relative coordinates): `[x1, y1, x2, y2]` in whole numbers. Resizing an image leaves them as they are. The
answer to a question for a box is `{"bbox_2d": [x1, y1, x2, y2], "label": "..."}`, for several boxes a JSON list of these.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BOX_PLACEHOLDER = "<bbox>"
"""Stands for a box in the texts of a record whose boxes are stated apart from them, as in ms-swift's data."""
FULL = 1000
"""The right and the lower edge of an image."""

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_FOUR_NUMBERS = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}(?:,|\)\s*,\s*\(){_NUMBER},{_NUMBER}[\])]")
"""[x1, y1, x2, y2], and (x1,y1),(x2,y2) as Qwen2-VL writes it."""
_ROUNDING = 1.0
"""By how many pixels, or thousandths, annotators' boxes may stand out of an image; this much is cut off."""


class Box(NamedTuple):
    """Left, top, right and bottom in thousandths of the upright image."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Area in square thousandths; 0 where the corners are exchanged."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def text(self) -> str:
        """The box as a text names it: whole numbers, [x1, y1, x2, y2]."""
        return f"[{', '.join(str(min(FULL, max(0, round(value)))) for value in self)}]"

    def mirrored(self) -> "Box":
        """The box in the image with left and right exchanged."""
        return Box(FULL - self.x2, self.y1, FULL - self.x1, self.y2)

    def rotated(self, degrees: float, aspect: float) -> "Box":
        """The smallest upright box around this one in the image rotated counterclockwise about its center, at the same size; it may stand
        out of the image.

        Args:
            degrees: Angle.
            aspect: Width of the image divided by its height.
        """
        angle, half = math.radians(degrees), FULL / 2
        cos, sin = math.cos(angle), math.sin(angle)
        corners = [(x - half, y - half) for x in (self.x1, self.x2) for y in (self.y1, self.y2)]
        # Thousandths of the width and of the height are different lengths.
        columns = [half + x * cos + y / aspect * sin for x, y in corners]
        rows = [half - x * aspect * sin + y * cos for x, y in corners]
        return Box(min(columns), min(rows), max(columns), max(rows))

    def clipped(self) -> "Box":
        """The part of the box inside the image."""
        return Box(*(min(float(FULL), max(0.0, value)) for value in self))


@dataclass(frozen=True, slots=True)
class Region:
    """A box that a text of a sample names.

    Args:
        image: Index of its image among those of the sample.
        turn: Index of the text among the messages of the sample, after which its targets are counted.
        start: Index of the character at which the box begins in that text.
        box: The box.
    """

    image: int
    turn: int
    start: int
    box: Box


@dataclass(frozen=True, slots=True)
class RawBox:
    """A box as an annotation file states it.

    Args:
        image: Index of its image among those of the record.
        corners: x1, y1, x2, y2.
        in_pixels: Whether these are pixels, not thousandths.
        is_stored: Whether they refer to the image as it is stored, before the rotation that its EXIF data state.
    """

    image: int
    corners: tuple[float, float, float, float]
    in_pixels: bool = True
    is_stored: bool = False

    def upright(self, size: tuple[int, int], orientation: int = 1) -> Box:
        """The box in the upright image.

        Args:
            size: Width and height of the upright image in pixels.
            orientation: EXIF orientation of the stored image, 1 to 8.

        Raises:
            ValueError: The box is outside the image, or its corners are exchanged or one point.
        """
        rotation = orientation if self.is_stored else 1
        width, height = size[::-1] if rotation >= 5 else size
        limits = (width, height) if self.in_pixels else (FULL, FULL)
        described = f"the box {list(self.corners)}"
        if not all(map(math.isfinite, self.corners)):
            raise ValueError(f"{described} has a coordinate that is no number")
        x1, y1, x2, y2 = self.corners
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"{described} has no area or its corners exchanged; expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        if min(x1, y1) < -_ROUNDING or x2 > limits[0] + _ROUNDING or y2 > limits[1] + _ROUNDING:
            unit = f"{width} x {height} pixels" if self.in_pixels else f"{FULL} thousandths a side"
            raise ValueError(f"{described} is outside its image of {unit}")
        relative = Box(*(FULL * value / limits[i % 2] for i, value in enumerate(self.corners))).clipped()
        if not relative.area:
            raise ValueError(f"{described} is outside its image")
        return _upright(relative, rotation)


def _upright(box: Box, orientation: int) -> Box:
    """The box after the rotation and mirroring that make an image of an EXIF orientation upright (EXIF 2.32, tag 0x0112)."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = FULL - x2, FULL - y2, FULL - x1, FULL - y1
    return {
        2: Box(left, y1, right, y2),
        3: Box(left, top, right, bottom),
        4: Box(x1, top, x2, bottom),
        5: Box(y1, x1, y2, x2),
        6: Box(top, x1, bottom, x2),
        7: Box(top, left, bottom, right),
        8: Box(y1, left, y2, right),
    }.get(orientation, box)


def box_answer(label: str) -> str:
    """The answer to a question for the box of something, with a placeholder for the box."""
    return f'{{"bbox_2d": {BOX_PLACEHOLDER}, "label": {json.dumps(label, ensure_ascii=False)}}}'


def is_box_answer(text: str) -> bool:
    """Whether a text is one box or a list of boxes in the form of `box_answer`, and nothing else."""
    try:
        value = json.loads(text.replace(BOX_PLACEHOLDER, "[0, 0, 0, 0]"))
    except (ValueError, RecursionError):
        return False
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict) and _is_quadruple(entry.get("bbox_2d")) for entry in entries)


def _is_quadruple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value)


def fill(texts: Sequence[str], boxes: Sequence[tuple[int, Box]]) -> tuple[list[str], list[Region]]:
    """The texts with the boxes, each with the index of its image, in the places of their placeholders, and where they stand."""
    filled, regions, remaining = [], [], iter(boxes)
    for turn, text in enumerate(texts):
        before, *after = text.split(BOX_PLACEHOLDER)
        for part in after:
            image, box = next(remaining)
            regions.append(Region(image, turn, len(before), box))
            before += box.text() + part
        filled.append(before)
    return filled, regions


def refill(texts: Sequence[str], regions: Sequence[Region], boxes: Sequence[Box]) -> tuple[list[str], list[Region]]:
    """Texts that name regions, with other boxes in the places of theirs."""
    templates = list(texts)
    # From the last on, so that the places of the others stay.
    for region in sorted(regions, key=lambda region: -region.start):
        text, end = templates[region.turn], region.start + len(region.box.text())
        templates[region.turn] = text[: region.start] + BOX_PLACEHOLDER + text[end:]
    return fill(templates, [(region.image, box) for region, box in zip(regions, boxes, strict=True)])


def find_boxes(text: str) -> Iterator[re.Match[str]]:
    """Where a text has four numbers in brackets; their texts are the groups."""
    return _FOUR_NUMBERS.finditer(text)


def parse_boxes(text: str) -> list[Box]:
    """The boxes that a text names: whatever stands around them, four numbers in brackets of which none is outside 0 to 1000 and that are
    in the right order."""
    boxes = [Box(*map(float, match.groups())) for match in find_boxes(text)]
    return [box for box in boxes if 0 <= box.x1 < box.x2 <= FULL and 0 <= box.y1 < box.y2 <= FULL]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1 (Everingham et al. 2010, IJCV 88, "The PASCAL VOC Challenge")."""
    overlap = Box(max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)).area
    union = a.area + b.area - overlap
    return overlap / union if union else 0.0
