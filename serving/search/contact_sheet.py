"""What a search found, for people: lines of a table, and a contact sheet with thumbnails."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from answering.rendering import text_font, wrap_text
from errors import TesseraError
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit

NUM_COLUMNS, CELL_SIZE, MARGIN, FONT_SIZE, TITLE_FONT_SIZE = 5, 200, 20, 15, 22
"""Pictures in a line; pixels: side of a picture's square, margin, size of the letters and of the title's."""
TEXT_COLOR, MUTED_COLOR, BACKGROUND_COLOR, CELL_COLOR = (34, 34, 34), (120, 120, 120), (255, 255, 255), (243, 243, 240)
"""Colours of text, of what matters less, of the sheet and of the squares."""
UPLOADED = "(uploaded)"


def result_lines(found: Sequence[SearchHit]) -> list[str]:
    """A table: place, score, bytes and file of each picture, best first."""
    rows = [(str(rank), f"{hit.score:.3f}", f"{hit.size:,}", name(hit)) for rank, hit in enumerate(found, 1)]
    rows.insert(0, ("#", "score", "bytes", "picture"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[-1]}" for row in rows]


def name(found: SearchHit) -> str:
    """How a picture is called: its file, or the beginning of its id where it was uploaded."""
    return f"{found.id[:12]} {UPLOADED}" if found.path is None else str(found.path)


def contact_sheet(index: ImageIndex, question: str | Image.Image, found: Sequence[SearchHit]) -> Image.Image:
    """An RGB image: what was searched for, and under it the pictures, best first, each with its place, score and name.

    A picture that cannot be read any more is an empty square that says so.
    """
    width = NUM_COLUMNS * (CELL_SIZE + MARGIN) + MARGIN
    heading = _heading(question, width - 2 * MARGIN)
    row_height = CELL_SIZE + 2 * round(FONT_SIZE * 1.6) + MARGIN
    height = heading.height + 2 * MARGIN + max(1, -(-len(found) // NUM_COLUMNS)) * row_height
    sheet = Image.new("RGB", (width, height), BACKGROUND_COLOR)
    sheet.paste(heading, (MARGIN, MARGIN))
    draw, font = ImageDraw.Draw(sheet), text_font(FONT_SIZE)
    if not found:
        draw.text((MARGIN, heading.height + 2 * MARGIN), "nothing found: the index is empty", font=font, fill=MUTED_COLOR)
    for rank, hit in enumerate(found):
        left = MARGIN + rank % NUM_COLUMNS * (CELL_SIZE + MARGIN)
        top = heading.height + 2 * MARGIN + rank // NUM_COLUMNS * row_height
        sheet.paste(_thumbnail_cell(index, hit, font), (left, top))
        draw.text((left, top + CELL_SIZE + 6), f"{rank + 1}", font=font, fill=MUTED_COLOR)
        draw.text((left + CELL_SIZE, top + CELL_SIZE + 6), f"{hit.score:.3f}", font=font, fill=TEXT_COLOR, anchor="ra")
        label = hit.path.name if hit.path else hit.id[:12]
        draw.text((left, top + CELL_SIZE + 6 + round(FONT_SIZE * 1.4)), _truncate_middle(label, font), font=font, fill=TEXT_COLOR)
    return sheet


def _heading(question: str | Image.Image, width: int) -> Image.Image:
    if isinstance(question, Image.Image):
        image = question.convert("RGB")
        image.thumbnail((CELL_SIZE, CELL_SIZE // 2), Image.Resampling.LANCZOS)
        return image
    font = text_font(TITLE_FONT_SIZE)
    text = wrap_text(question, font, width)
    heading = Image.new("RGB", (width, len(text) * round(TITLE_FONT_SIZE * 1.5)), BACKGROUND_COLOR)
    draw = ImageDraw.Draw(heading)
    for i, line in enumerate(text):
        draw.text((0, i * round(TITLE_FONT_SIZE * 1.5)), line, font=font, fill=TEXT_COLOR)
    return heading


def _thumbnail_cell(index: ImageIndex, found: SearchHit, font: ImageFont.FreeTypeFont) -> Image.Image:
    square = Image.new("RGB", (CELL_SIZE, CELL_SIZE), CELL_COLOR)
    try:
        image = index.thumbnail(found, CELL_SIZE)
    except TesseraError:
        ImageDraw.Draw(square).text((CELL_SIZE // 2, CELL_SIZE // 2), "no longer there", font=font, fill=MUTED_COLOR, anchor="mm")
        return square
    square.paste(image, ((CELL_SIZE - image.width) // 2, (CELL_SIZE - image.height) // 2))
    return square


def _truncate_middle(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A name cut in the middle where it is wider than its square: beginnings and endings tell files apart."""
    length = len(text)
    while font.getlength(text) > CELL_SIZE and length > 6:
        length -= 1
        text = text[: length // 2] + "…" + text[len(text) - (length - length // 2) + 1 :]
    return text
