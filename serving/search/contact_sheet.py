"""What a search found, for people: lines of a table, and a contact sheet with thumbnails."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from answering.rendering import text_font, wrapped
from errors import TesseraError
from serving.search.image_index import PictureIndex
from serving.search.lancedb_table import Found

COLUMNS, CELL, MARGIN, LETTERS, TITLE = 5, 200, 20, 15, 22
"""Pictures in a line; pixels: side of a picture's square, margin, size of the letters and of the title's."""
INK, PALE, PAPER, MOUNT = (34, 34, 34), (120, 120, 120), (255, 255, 255), (243, 243, 240)
"""Colours of text, of what matters less, of the sheet and of the squares."""
UPLOADED = "(uploaded)"


def lines(found: Sequence[Found]) -> list[str]:
    """A table: place, score, bytes and file of each picture, best first."""
    rows = [(str(place), f"{one.score:.3f}", f"{one.size:,}", name(one)) for place, one in enumerate(found, 1)]
    rows.insert(0, ("#", "score", "bytes", "picture"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[-1]}" for row in rows]


def name(found: Found) -> str:
    """How a picture is called: its file, or the beginning of its id where it was uploaded."""
    return f"{found.id[:12]} {UPLOADED}" if found.path is None else str(found.path)


def contact_sheet(index: PictureIndex, question: str | Image.Image, found: Sequence[Found]) -> Image.Image:
    """An RGB image: what was searched for, and under it the pictures, best first, each with its place, score and name.

    A picture that cannot be read any more is an empty square that says so.
    """
    width = COLUMNS * (CELL + MARGIN) + MARGIN
    heading = _heading(question, width - 2 * MARGIN)
    step = CELL + 2 * round(LETTERS * 1.6) + MARGIN
    height = heading.height + 2 * MARGIN + max(1, -(-len(found) // COLUMNS)) * step
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(heading, (MARGIN, MARGIN))
    draw, font = ImageDraw.Draw(sheet), text_font(LETTERS)
    if not found:
        draw.text((MARGIN, heading.height + 2 * MARGIN), "nothing found: the index is empty", font=font, fill=PALE)
    for place, one in enumerate(found):
        left = MARGIN + place % COLUMNS * (CELL + MARGIN)
        top = heading.height + 2 * MARGIN + place // COLUMNS * step
        sheet.paste(_mounted(index, one, font), (left, top))
        draw.text((left, top + CELL + 6), f"{place + 1}", font=font, fill=PALE)
        draw.text((left + CELL, top + CELL + 6), f"{one.score:.3f}", font=font, fill=INK, anchor="ra")
        short = one.path.name if one.path else one.id[:12]
        draw.text((left, top + CELL + 6 + round(LETTERS * 1.4)), _fitting(short, font), font=font, fill=INK)
    return sheet


def _heading(question: str | Image.Image, width: int) -> Image.Image:
    if isinstance(question, Image.Image):
        picture = question.convert("RGB")
        picture.thumbnail((CELL, CELL // 2), Image.Resampling.LANCZOS)
        return picture
    font = text_font(TITLE)
    text = wrapped(question, font, width)
    heading = Image.new("RGB", (width, len(text) * round(TITLE * 1.5)), PAPER)
    draw = ImageDraw.Draw(heading)
    for i, line in enumerate(text):
        draw.text((0, i * round(TITLE * 1.5)), line, font=font, fill=INK)
    return heading


def _mounted(index: PictureIndex, found: Found, font: ImageFont.FreeTypeFont) -> Image.Image:
    mount = Image.new("RGB", (CELL, CELL), MOUNT)
    try:
        picture = index.thumbnail(found, CELL)
    except TesseraError:
        ImageDraw.Draw(mount).text((CELL // 2, CELL // 2), "no longer there", font=font, fill=PALE, anchor="mm")
        return mount
    mount.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return mount


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A name cut in the middle where it is wider than its square: beginnings and endings tell files apart."""
    kept = len(text)
    while font.getlength(text) > CELL and kept > 6:
        kept -= 1
        text = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) + 1 :]
    return text
