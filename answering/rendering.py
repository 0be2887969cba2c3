"""Render images with text next to them, in a font with Chinese characters if one is installed."""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from answering.reply import Reply
from answering.request_images import scale_to_side
from atomic_io import atomic_write, write_json
from dataset.bounding_box import FULL, Box, Region
from dataset.loading.image_io import open_image, printable_path

log = logging.getLogger(__name__)

IMAGE_SIDE, TEXT_WIDTH, MARGIN, FONT_SIZE = 360, 560, 16, 18
"""In pixels: side of the square an image is fitted into, width of the text column, margin, font size."""
Colour = tuple[int, int, int]
LABEL_COLOUR, TEXT_COLOUR = (110, 110, 110), (0, 0, 0)
BOX_COLOUR = (229, 72, 77)

PREFERRED_FONTS = (
    "notosanscjk-regular", "notosanssc", "sourcehansanssc", "sourcehansanscn", "wqy-microhei", "wqy-zenhei", "msyh", "pingfang",
    "hiragino sans gb", "stheiti", "simhei", "droidsansfallback", "notoserifcjk", "simsun",
)  # fmt: skip
"""File name prefixes of preferred fonts, best first; any other font with Chinese characters comes after them."""


def side_by_side(
    images: Sequence[Image.Image],
    texts: Sequence[tuple[str, str]],
    *,
    image_side: int = IMAGE_SIDE,
    text_width: int = TEXT_WIDTH,
    label_colours: Mapping[str, Colour] | None = None,
) -> Image.Image:
    """An RGB image: the images on the left in a column, and on the right each label with its text below it.

    Args:
        images: fitted into squares of `image_side` pixels.
        texts: labels and texts.
        image_side: see above.
        text_width: width of the text column in pixels.
        label_colours: colours of labels other than LABEL_COLOUR.
    """
    colours = label_colours or {}
    font = text_font(FONT_SIZE)
    step = round(FONT_SIZE * 1.45)
    lines = [
        line
        for label, text in texts
        for line in [(label, colours.get(label, LABEL_COLOUR)), *((line, TEXT_COLOUR) for line in [*wrap_text(text, font, text_width), ""])]
    ]
    fitted = [scale_to_side(image, image_side) for image in images]
    left = image_side + 2 * MARGIN if fitted else MARGIN
    height = max(sum(image.height + MARGIN for image in fitted) + MARGIN, len(lines) * step + 2 * MARGIN)
    canvas = Image.new("RGB", (left + text_width + MARGIN, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = MARGIN
    for image in fitted:
        canvas.paste(image, (MARGIN + (image_side - image.width) // 2, top))
        top += image.height + MARGIN
    for i, (text, colour) in enumerate(lines):
        draw.text((left, MARGIN + i * step), text, font=font, fill=colour)
    return canvas


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[Box, Colour]]) -> Image.Image:
    """A copy of an image with boxes, each in its colour on a thin white line, so that they can be seen on any ground."""
    boxed = image.convert("RGB")
    draw = ImageDraw.Draw(boxed)
    width = max(2, round(max(boxed.size) / 200))
    for box, colour in boxes:
        x1, y1, x2, y2 = (round(value * side / FULL) for value, side in zip(box, boxed.size * 2, strict=True))
        for margin, outline in ((1, "white"), (0, colour)):
            draw.rectangle((x1 - margin, y1 - margin, x2 + margin, y2 + margin), outline=outline, width=width + 2 * margin)
    return boxed


def save_boxes(images: Sequence[Image.Image], regions: Sequence[Region], path: Path) -> list[Path]:
    """Write images with the boxes of a sample, as PNG files whose names are that of `path` and the index of the image."""
    files = []
    for i, image in enumerate(images):
        files.append(path.with_name(f"{path.name}-{i}.png"))
        boxed = draw_boxes(image, [(region.box, BOX_COLOUR) for region in regions if region.image == i])
        with atomic_write(files[-1]) as temp_path:
            boxed.save(temp_path, "PNG")
    return files


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most `width` pixels. Breaks between words, anywhere in Chinese, and inside a word only if it is too long."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for character in paragraph:
            if line and font.getlength(line + character) > width and character != " ":
                head, space, word = line.rpartition(" ")
                breakable = bool(space and head.strip()) and word.isascii() and character.isascii()
                lines.append(head if breakable else line)
                line = word if breakable else ""
            line += character
        lines.append(line)
    return lines


MISSING_FONT = (
    "no installed font has Chinese characters, so charts and images show boxes in their place; install one and run the command again: "
    "sudo apt install fonts-noto-cjk (Debian, Ubuntu), sudo dnf install google-noto-sans-cjk-fonts (Fedora), "
    "brew install --cask font-noto-sans-cjk (macOS)"
)
"""What to say where `chinese_font` finds none."""


@functools.cache
def warn_of_missing_font() -> None:
    """Log MISSING_FONT, once in a process."""
    log.warning(MISSING_FONT)


def text_font(size: int) -> ImageFont.FreeTypeFont:
    """An installed font with Chinese characters if there is one, else DejaVu Sans, which shows them as boxes, with a warning."""
    file = chinese_font()
    if file is None:
        warn_of_missing_font()
    return ImageFont.truetype(str(file or Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


@functools.cache
def chinese_font() -> Path | None:
    """File of the best installed font with Chinese characters; None if there is none."""
    files = sorted(map(Path, font_manager.findSystemFonts()), key=_font_rank)
    return next((file for file in files if _has_chinese(file)), None)


def _font_rank(file: Path) -> tuple[int, str]:
    name = file.name.lower()
    return next((i for i, prefix in enumerate(PREFERRED_FONTS) if name.startswith(prefix)), len(PREFERRED_FONTS)), name


def _has_chinese(file: Path) -> bool:
    try:
        font = FT2Font(str(file))
    except (OSError, RuntimeError):
        # FreeType cannot open bitmap fonts and damaged files.
        return False
    return all(font.get_char_index(ord(character)) for character in "图红两")


def save_reply(reply: Reply, images: Sequence[Path], folder: Path, model: dict[str, Any]) -> Path:
    """Write a reply as `<image>-<digest of question and system>.json` and `.png`; returns the path of the PNG.

    Args:
        reply: the answer and its candidates.
        images: files shown next to the text.
        folder: where the two files go.
        model: identifies the system, as `model_fingerprint.identity` gives it.

    Raises ImageError if an image cannot be read.
    """
    digest = hashlib.blake2b(json.dumps([reply.question, model], default=str).encode(), digest_size=4).hexdigest()
    path = folder / f"{printable_path(images[0].stem) if images else 'question'}-{digest}.png"
    write_json(path.with_suffix(".json"), {"images": [printable_path(image) for image in images], **reply.record(), "model": model})
    confidence_row = [] if reply.confidence is None else [("Confidence", f"{reply.confidence:.2f}{reply.unlike_note()}")]
    texts = [("Question", reply.question), ("Answer", reply.chosen), *confidence_row, ("Candidates", "\n".join(_candidate_lines(reply)))]
    with atomic_write(path) as temp_path:
        side_by_side([open_image(image) for image in images], texts).save(temp_path)
    return path


def _candidate_lines(reply: Reply) -> list[str]:
    """One line per candidate with its scores after it; aligned columns would need a monospaced font."""
    lines = []
    for candidate in reply.candidates():
        scored = ((name, candidate[name]) for name in (*reply.signals, *(["fused"] if reply.fused else [])))
        named = (("mean log p", candidate["mean_log_prob"]), *scored)
        scores = ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None)
        lines.append(f"{candidate['text'] or '(empty)'}   ({scores})")
    return lines
