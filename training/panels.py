"""Pictures with question, reference and the model's answer, drawn for TensorBoard and for the table at the end of a run."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

PICTURE, TEXT_WIDTH, MARGIN, SIZE = 240, 560, 14, 18
"""Pixels: side of the square a picture is fitted into, width of the text, margin, size of the letters."""
LONGEST_WORD = 25
"""Letters; a longer word is broken."""
LABEL_COLOUR, TEXT_COLOUR, RULE_COLOUR = (90, 90, 90), (0, 0, 0), (210, 210, 210)

CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Heiti TC", "Noto Serif CJK SC", "Noto Serif CJK JP", "SimSun",
)  # fmt: skip
"""Font families with Chinese characters, by preference. Where none is installed, Chinese text shows as empty boxes."""


@dataclass(frozen=True)
class Panel:
    """What was asked about which pictures, what stands in the data, and what the model says."""

    pictures: Sequence[Image.Image]
    question: str
    reference: str
    answer: str


def draw_panel(panel: Panel) -> Image.Image:
    """An RGB image: the pictures on the left, one below the other, the three texts on the right."""
    font = _font()
    lines = [line for label, text in _texts(panel) for line in _wrap(label, text, font)]
    step = SIZE + 7
    pictures = [_fitted(picture) for picture in panel.pictures]
    left = PICTURE + 2 * MARGIN if pictures else MARGIN
    height = max(sum(picture.height + MARGIN for picture in pictures), len(lines) * step) + 2 * MARGIN
    canvas = Image.new("RGB", (left + TEXT_WIDTH + MARGIN, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = MARGIN
    for picture in pictures:
        canvas.paste(picture, (MARGIN, top))
        top += picture.height + MARGIN
    for i, (text, colour) in enumerate(lines):
        draw.text((left, MARGIN + i * step), text, font=font, fill=colour)
    return canvas


def draw_table(panels: Sequence[Panel]) -> Image.Image:
    """All panels in one RGB image, one below the other with a rule between. panels: at least one."""
    drawn = [draw_panel(panel) for panel in panels]
    table = Image.new("RGB", (max(one.width for one in drawn), sum(one.height + 1 for one in drawn)), RULE_COLOUR)
    top = 0
    for one in drawn:
        table.paste("white", (0, top, table.width, top + one.height))
        table.paste(one, (0, top))
        top += one.height + 1
    return table


def _texts(panel: Panel) -> list[tuple[str, str]]:
    return [("question", panel.question), ("reference", panel.reference), ("answer", panel.answer)]


def _fitted(picture: Image.Image) -> Image.Image:
    scale = PICTURE / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)


def _wrap(label: str, text: str, font: ImageFont.FreeTypeFont) -> list[tuple[str, tuple[int, int, int]]]:
    """The label, the text broken to the width (between words, and anywhere in Chinese), and an empty line; with colours."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for piece in _pieces(paragraph):
            if line and font.getlength(line + piece.rstrip()) > TEXT_WIDTH:
                lines.append(line)
                line = ""
            line += piece
        lines.append(line)
    return [(label, LABEL_COLOUR), *((line, TEXT_COLOUR) for line in lines), ("", TEXT_COLOUR)]


def _pieces(text: str) -> list[str]:
    """Words with the space behind them; where letters are not Latin, single characters."""
    pieces: list[str] = []
    for character in text:
        joins = bool(pieces) and ord(character) < 0x2E80 and ord(pieces[-1][-1]) < 0x2E80 and (character == " " or pieces[-1][-1] != " ")
        if joins and len(pieces[-1]) < LONGEST_WORD:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    files = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    name = next((name for name in CHINESE_FONTS if name in files), "DejaVu Sans")
    return ImageFont.truetype(files[name], SIZE)
