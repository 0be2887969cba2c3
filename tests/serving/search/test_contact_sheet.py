"""The contact sheet shows each result with rank, score and name, and an empty cell for a missing file."""

from pathlib import Path

from PIL import Image

from serving.search.contact_sheet import CELL_COLOR, CELL_SIZE, MARGIN, NUM_COLUMNS, contact_sheet, result_lines
from serving.search.folder_indexer import index_folder
from serving.search.image_index import ImageIndex
from tests.serving.search.conftest import fill, noise_image, png


def crop_cell(sheet: Image.Image, column: int, top: int) -> Image.Image:
    left = MARGIN + column * (CELL_SIZE + MARGIN)
    return sheet.crop((left, top, left + CELL_SIZE, top + CELL_SIZE))


def test_every_image_has_a_cell_and_a_missing_file_is_noted(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(NUM_COLUMNS))
    index_folder(index, library)
    index.add(png(9))
    hits = index.search_by_image(png(9), NUM_COLUMNS + 1)
    assert hits[1].path is not None
    hits[1].path.unlink()
    sheet = contact_sheet(index, noise_image(9), hits)
    assert sheet.size == (NUM_COLUMNS * (CELL_SIZE + MARGIN) + MARGIN, 40 + 2 * MARGIN + 2 * (CELL_SIZE + 48 + MARGIN))
    cells = [crop_cell(sheet, column, 40 + 2 * MARGIN) for column in range(3)]
    # The middle of a cell has the colour of its image; the cell of a missing file is grey with text.
    assert cells[0].getpixel((CELL_SIZE // 2, CELL_SIZE // 2)) == index.thumbnail(hits[0]).getpixel((25, 20))
    assert cells[1].getpixel((5, 5)) == CELL_COLOR
    assert len(set(cells[1].getdata())) > 2
    assert cells[2].getpixel((CELL_SIZE // 2, CELL_SIZE // 2)) == index.thumbnail(hits[2]).getpixel((25, 20))


def test_the_table_has_a_line_for_each_result(index: ImageIndex, tmp_path: Path) -> None:
    index_folder(index, fill(tmp_path / "library", range(1)))
    index.add(png(5))
    table = result_lines(index.search_by_image(png(5), 2))
    assert [line.split()[0] for line in table] == ["#", "1", "2"]
    assert table[1].endswith(" (uploaded)")
    assert table[2].endswith(str(tmp_path / "library" / "0.png"))


def test_the_sheet_of_an_empty_index_has_a_note(index: ImageIndex) -> None:
    sheet = contact_sheet(index, "两个绿色的三角形 " * 30, [])
    assert sheet.height > 2 * CELL_SIZE
    assert len(set(sheet.getdata())) > 2
