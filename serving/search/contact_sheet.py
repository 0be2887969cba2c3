"""Search results for people: a table as text, and a contact sheet of thumbnails."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from answering.rendering import text_font, wrap_text
from errors import TesseraError
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit

NUM_COLUMNS, CELL_SIZE, MARGIN, FONT_SIZE, TITLE_FONT_SIZE = 5, 200, 20, 15, 22
"""Number of columns; in pixels: side of a cell, margin, font size of the labels and of the title."""
TEXT_COLOR, MUTED_COLOR, BACKGROUND_COLOR, CELL_COLOR = (34, 34, 34), (120, 120, 120), (255, 255, 255), (243, 243, 240)
"""Colours of text, of secondary text, of the sheet and of the cells."""


def result_lines(hits: Sequence[SearchHit]) -> list[str]:
    """A table with rank, score, size in bytes and file of each image, best first."""
    rows = [(str(rank), f"{hit.score:.3f}", f"{hit.size:,}", name(hit)) for rank, hit in enumerate(hits, 1)]
    rows.insert(0, ("#", "score", "bytes", "image"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[-1]}" for row in rows]


def name(hit: SearchHit) -> str:
    """Label of an image: its file, or the first digits of its id if it was uploaded."""
    return f"{hit.id[:12]} (uploaded)" if hit.path is None else str(hit.path)


def contact_sheet(index: ImageIndex, query: str | Image.Image, hits: Sequence[SearchHit]) -> Image.Image:
    """An RGB image: the query, and below it the found images, best first, each with its rank, score and name.

    An image that can no longer be read is shown as an empty cell with a note.
    """
    width = NUM_COLUMNS * (CELL_SIZE + MARGIN) + MARGIN
    heading = _heading(query, width - 2 * MARGIN)
    row_height = CELL_SIZE + 2 * round(FONT_SIZE * 1.6) + MARGIN
    height = heading.height + 2 * MARGIN + max(1, -(-len(hits) // NUM_COLUMNS)) * row_height
    sheet = Image.new("RGB", (width, height), BACKGROUND_COLOR)
    sheet.paste(heading, (MARGIN, MARGIN))
    draw, font = ImageDraw.Draw(sheet), text_font(FONT_SIZE)
    if not hits:
        draw.text((MARGIN, heading.height + 2 * MARGIN), "no results: the index is empty", font=font, fill=MUTED_COLOR)
    for rank, hit in enumerate(hits):
        left = MARGIN + rank % NUM_COLUMNS * (CELL_SIZE + MARGIN)
        top = heading.height + 2 * MARGIN + rank // NUM_COLUMNS * row_height
        sheet.paste(_thumbnail_cell(index, hit, font), (left, top))
        draw.text((left, top + CELL_SIZE + 6), f"{rank + 1}", font=font, fill=MUTED_COLOR)
        draw.text((left + CELL_SIZE, top + CELL_SIZE + 6), f"{hit.score:.3f}", font=font, fill=TEXT_COLOR, anchor="ra")
        label = hit.path.name if hit.path else hit.id[:12]
        draw.text((left, top + CELL_SIZE + 6 + round(FONT_SIZE * 1.4)), _truncate_middle(label, font), font=font, fill=TEXT_COLOR)
    return sheet


def _heading(query: str | Image.Image, width: int) -> Image.Image:
    if isinstance(query, Image.Image):
        image = query.convert("RGB")
        image.thumbnail((CELL_SIZE, CELL_SIZE // 2), Image.Resampling.LANCZOS)
        return image
    font = text_font(TITLE_FONT_SIZE)
    lines = wrap_text(query, font, width)
    heading = Image.new("RGB", (width, len(lines) * round(TITLE_FONT_SIZE * 1.5)), BACKGROUND_COLOR)
    draw = ImageDraw.Draw(heading)
    for i, line in enumerate(lines):
        draw.text((0, i * round(TITLE_FONT_SIZE * 1.5)), line, font=font, fill=TEXT_COLOR)
    return heading


def _thumbnail_cell(index: ImageIndex, hit: SearchHit, font: ImageFont.FreeTypeFont) -> Image.Image:
    cell = Image.new("RGB", (CELL_SIZE, CELL_SIZE), CELL_COLOR)
    try:
        image = index.thumbnail(hit, CELL_SIZE)
    except TesseraError:
        ImageDraw.Draw(cell).text((CELL_SIZE // 2, CELL_SIZE // 2), "file missing", font=font, fill=MUTED_COLOR, anchor="mm")
        return cell
    cell.paste(image, ((CELL_SIZE - image.width) // 2, (CELL_SIZE - image.height) // 2))
    return cell


def _truncate_middle(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A name without its middle if it is wider than a cell: files differ in their first and last characters."""
    length = len(text)
    while font.getlength(text) > CELL_SIZE and length > 6:
        length -= 1
        text = text[: length // 2] + "…" + text[len(text) - (length - length // 2) + 1 :]
    return text
