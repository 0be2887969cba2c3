"""Render a scene to pixels: shapes with jittered rotation, size, position and color on varied noisy backgrounds.

Rendered at twice the size and downscaled, which smooths the edges. Digits and letters are polylines defined here, so no font is needed.
"""

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from dataset.synthetic.scene import GRID, Scene, Thing

SIZE = 96
"""Width and height in pixels of an image with a grid of 3 x 3; a larger grid has cells of the same size."""

_SCALE = 2
_CELL = SIZE * _SCALE // GRID
_RGB = {
    "red": (215, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 215), "yellow": (235, 212, 45),
    "purple": (145, 60, 185), "orange": (238, 135, 30), "black": (22, 22, 24), "white": (246, 246, 244),
}  # fmt: skip
_LIGHT = frozenset({"yellow", "orange", "white"})

Point = tuple[float, float]
PixelBox = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
Stroke = tuple[Point, ...]

_STROKES: tuple[Stroke, ...] = (
    ((-0.5, -0.6), (-0.2, -1), (0.2, -1), (0.5, -0.6), (0.5, 0.6), (0.2, 1), (-0.2, 1), (-0.5, 0.6), (-0.5, -0.6)),
    ((-0.4, -0.55), (0.05, -1), (0.05, 1)),
    ((-0.5, -0.6), (-0.2, -1), (0.25, -1), (0.5, -0.65), (0.45, -0.2), (-0.55, 1), (0.6, 1)),
    ((-0.5, -0.8), (-0.1, -1), (0.45, -0.8), (0.45, -0.25), (0, -0.05), (0.5, 0.2), (0.5, 0.75), (0, 1), (-0.5, 0.8)),
    ((0.3, 1), (0.3, -1), (-0.6, 0.4), (0.65, 0.4)),
    ((0.5, -1), (-0.4, -1), (-0.5, -0.1), (0.1, -0.25), (0.5, 0.1), (0.5, 0.65), (0.1, 1), (-0.5, 0.8)),
    ((0.45, -0.85), (0, -1), (-0.45, -0.5), (-0.5, 0.5), (-0.2, 1), (0.25, 1), (0.5, 0.5), (0.25, 0), (-0.2, 0), (-0.5, 0.4)),
    ((-0.55, -1), (0.55, -1), (-0.1, 1)),
    (
        (0, -0.1), (-0.45, -0.4), (-0.35, -0.9), (0, -1), (0.35, -0.9), (0.45, -0.4), (0, -0.1),
        (-0.5, 0.35), (-0.4, 0.85), (0, 1), (0.4, 0.85), (0.5, 0.35), (0, -0.1),
    ),
    ((-0.4, 0.9), (0.1, 1), (0.45, 0.5), (0.5, -0.5), (0.2, -1), (-0.25, -1), (-0.5, -0.5), (-0.25, 0), (0.2, 0), (0.5, -0.4)),
)  # fmt: skip
"""The digits 0 to 9 as one polyline each, x and y from -1 to 1."""

_TOP, _MIDDLE = ((-0.5, 0), (-0.5, -1), (0.3, -1), (0.5, -0.75), (0.5, -0.25), (0.3, 0), (-0.5, 0)), ((-0.5, 0), (0.5, 0))
_LETTERS: dict[str, tuple[Stroke, ...]] = {
    "A": (((-0.6, 1), (0, -1), (0.6, 1)), ((-0.35, 0.25), (0.35, 0.25))),
    "B": (_TOP, ((-0.5, 0), (-0.5, 1), (0.35, 1), (0.55, 0.75), (0.55, 0.25), (0.35, 0))),
    "E": (((0.5, -1), (-0.5, -1), (-0.5, 1), (0.5, 1)), _MIDDLE),
    "G": (((0.55, -0.7), (0.2, -1), (-0.25, -1), (-0.55, -0.6), (-0.55, 0.6), (-0.25, 1), (0.3, 1), (0.55, 0.7), (0.55, 0.1), (0.1, 0.1)),),
    "I": (((0, -1), (0, 1)),),
    "K": (((-0.5, -1), (-0.5, 1)), ((0.55, -1), (-0.5, 0.1), (0.55, 1))),
    "M": (((-0.65, 1), (-0.65, -1), (0, 0.3), (0.65, -1), (0.65, 1)),),
    "N": (((-0.5, 1), (-0.5, -1), (0.5, 1), (0.5, -1)),),
    "O": (_STROKES[0],),
    "P": (_TOP, ((-0.5, 0), (-0.5, 1))),
    "S": (((0.5, -0.75), (0.2, -1), (-0.25, -1), (-0.5, -0.7), (-0.4, -0.2), (0.4, 0.2), (0.5, 0.7), (0.2, 1), (-0.25, 1), (-0.5, 0.75)),),
    "T": (((-0.6, -1), (0.6, -1)), ((0, -1), (0, 1))),
    "U": (((-0.5, -1), (-0.5, 0.6), (-0.2, 1), (0.2, 1), (0.5, 0.6), (0.5, -1)),),
    "Y": (((-0.6, -1), (0, 0), (0.6, -1)), ((0, 0), (0, 1))),
    "Z": (((-0.55, -1), (0.55, -1), (-0.55, 1), (0.55, 1)),),
}  # fmt: skip
"""The letters of the words on signs as polylines, x and y from -1 to 1."""


def render(scene: Scene) -> Image.Image:
    """Render the image of a scene, RGB, 96 x 96 pixels, or 32 for each row and column of a larger grid. Deterministic: the same scene
    gives the same pixels."""
    return render_with_boxes(scene)[0]


def render_with_boxes(scene: Scene) -> tuple[Image.Image, list[PixelBox]]:
    """The image of a scene, and the box around each of its things."""
    rng = scene.rng("drawing")
    canvas = _background(rng, scene.grid * _CELL)
    canvas_draw = ImageDraw.Draw(canvas)
    boxes = [_render_thing(canvas_draw, thing, rng) for thing in scene.things]
    pixels = np.asarray(canvas.reduce(_SCALE), dtype=np.int16)
    noise = np.frombuffer(rng.randbytes(pixels.size), dtype=np.uint8).reshape(pixels.shape).astype(np.int16) - 128
    noisy = pixels + (noise * rng.randint(2, 14) >> 7)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return image, [(x1 / _SCALE, y1 / _SCALE, x2 / _SCALE, y2 / _SCALE) for x1, y1, x2, y2 in boxes]


def _background(rng: random.Random, side: int) -> Image.Image:
    """A few muted shades scaled up to a canvas of side x side: plain, gradient, clouds, tiles or stripes."""
    nearest, bilinear, bicubic = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    stripes = (rng.randint(5, 12), 1, nearest), (1, rng.randint(5, 12), nearest)
    columns, rows, resample = rng.choice(((1, 1, nearest), (2, 2, bilinear), (5, 5, bicubic), (6, 6, nearest), *stripes))
    base = rng.randint(95, 185)
    tint = [base + rng.randint(-18, 18) for _ in range(3)]
    spread = rng.randint(6, 22)
    lights = [rng.randint(-spread, spread) for _ in range(columns * rows)]
    small = Image.new("RGB", (columns, rows))
    small.putdata([tuple(channel + light for channel in tint) for light in lights])
    return small.resize((side, side), resample)


def _render_thing(canvas_draw: ImageDraw.ImageDraw, thing: Thing, rng: random.Random) -> PixelBox:
    """Draw a thing on the canvas; returns the box around it there."""
    radius = rng.uniform(9, 13.5) * _SCALE
    x = (thing.column + 0.5) * _CELL + rng.uniform(-2, 2) * _SCALE
    y = (thing.row + 0.5) * _CELL + rng.uniform(-2, 2) * _SCALE
    center, box = (x, y), (x - radius, y - radius, x + radius, y + radius)
    angle = math.radians(rng.uniform(-12, 12))
    fill = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in _RGB[thing.color])
    match thing.shape:
        case "circle":
            canvas_draw.ellipse(box, fill=fill)
        case "ring":
            canvas_draw.ellipse(box, outline=fill, width=round(radius * rng.uniform(0.3, 0.42)))
        case "sign":
            _render_sign(canvas_draw, thing, center, radius, angle, fill)
            return _around(_transform(_OUTLINES["plate"], center, radius, angle))
        case shape:
            outline = _transform(_OUTLINES[shape], center, radius, angle)
            canvas_draw.polygon(outline, fill=fill)
            return _around(outline)
    return box


def _around(points: list[Point]) -> PixelBox:
    columns, rows = zip(*points, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def _render_sign(canvas_draw: ImageDraw.ImageDraw, thing: Thing, center: Point, radius: float, angle: float, fill: tuple[int, ...]) -> None:
    ink = (20, 20, 20) if thing.color in _LIGHT else (250, 250, 250)
    for size, color in ((1.0, fill), (0.88, ink), (0.8, fill)):
        canvas_draw.polygon(_transform(_OUTLINES["plate" if thing.word is None else "board"], center, radius * size, angle), fill=color)
    strokes, width = (_word_strokes(thing.word), 0.14) if thing.word is not None else (_digit_strokes(thing), 0.24)
    for stroke in strokes:
        canvas_draw.line(_transform(stroke, center, radius, angle), fill=ink, width=round(radius * width), joint="curve")


def _digit_strokes(thing: Thing) -> list[list[Point]]:
    """The polyline of a sign's digit, as high as the sign is wide."""
    assert thing.digit is not None
    return [[(0.62 * x, 0.62 * y) for x, y in _STROKES[thing.digit]]]


def _word_strokes(word: str) -> list[list[Point]]:
    """The polylines of a word's letters, side by side on a board."""
    step = 2 / len(word)
    placed = [(step * (i + 0.5) - 1, stroke) for i, letter in enumerate(word) for stroke in _LETTERS[letter.upper()]]
    return [[(center + 0.4 * step * x, 0.42 * y) for x, y in stroke] for center, stroke in placed]


def _transform(points: tuple[Point, ...] | list[Point], center: Point, radius: float, angle: float) -> list[Point]:
    """Points of a unit outline, scaled to `radius` pixels, rotated by `angle` radians and moved to `center`."""
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    return [(center[0] + x * cos - y * sin, center[1] + x * sin + y * cos) for x, y in points]


_STAR = [(1.15 if k % 2 == 0 else 0.48, math.pi * (k / 5 - 0.5)) for k in range(10)]
"""Distance from the center and angle of each corner."""

_QUARTER_CROSS = ((-0.36, -1.0), (0.36, -1.0), (0.36, -0.36))

_OUTLINES: dict[str, tuple[Point, ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "plate": ((-0.85, -1.05), (0.85, -1.05), (0.85, 1.05), (-0.85, 1.05)),
    "board": ((-1.12, -0.75), (1.12, -0.75), (1.12, 0.75), (-1.12, 0.75)),
    "triangle": ((0.0, -1.05), (1.05, 0.9), (-1.05, 0.9)),
    "star": tuple((reach * math.cos(turn), reach * math.sin(turn)) for reach, turn in _STAR),
    "cross": tuple((x * cos - y * sin, x * sin + y * cos) for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in _QUARTER_CROSS),
}
