"""What was found is shown with place, score and name; what is gone by now leaves an empty square."""

from pathlib import Path

from PIL import Image

from serving.search.contact_sheet import CELL_COLOR, CELL_SIZE, MARGIN, NUM_COLUMNS, contact_sheet, result_lines
from serving.search.folder_indexer import index_folder
from serving.search.image_index import ImageIndex
from tests.serving.search.conftest import fill, noise_image, png


def shown(sheet: Image.Image, place: int, top: int) -> Image.Image:
    left = MARGIN + place * (CELL_SIZE + MARGIN)
    return sheet.crop((left, top, left + CELL_SIZE, top + CELL_SIZE))


def test_every_image_has_its_square_and_a_missing_one_says_so(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(NUM_COLUMNS))
    index_folder(index, library)
    index.add(png(9))
    found = index.search_by_image(png(9), NUM_COLUMNS + 1)
    assert found[1].path is not None
    found[1].path.unlink()
    sheet = contact_sheet(index, noise_image(9), found)
    assert sheet.size == (NUM_COLUMNS * (CELL_SIZE + MARGIN) + MARGIN, 40 + 2 * MARGIN + 2 * (CELL_SIZE + 48 + MARGIN))
    squares = [shown(sheet, place, 40 + 2 * MARGIN) for place in range(3)]
    # Each is what it stands for: in the middle the picture's colour, and grey with words where there is none.
    assert squares[0].getpixel((CELL_SIZE // 2, CELL_SIZE // 2)) == index.thumbnail(found[0]).getpixel((25, 20))
    assert squares[1].getpixel((5, 5)) == CELL_COLOR
    assert len(set(squares[1].getdata())) > 2
    assert squares[2].getpixel((CELL_SIZE // 2, CELL_SIZE // 2)) == index.thumbnail(found[2]).getpixel((25, 20))


def test_a_table_has_a_line_for_each(index: ImageIndex, tmp_path: Path) -> None:
    index_folder(index, fill(tmp_path / "library", range(1)))
    index.add(png(5))
    table = result_lines(index.search_by_image(png(5), 2))
    assert [line.split()[0] for line in table] == ["#", "1", "2"]
    assert table[1].endswith(" (uploaded)")
    assert table[2].endswith(str(tmp_path / "library" / "0.png"))


def test_an_empty_index_is_said_on_the_sheet(index: ImageIndex) -> None:
    sheet = contact_sheet(index, "两个绿色的三角形 " * 30, [])
    assert sheet.height > 2 * CELL_SIZE
    assert len(set(sheet.getdata())) > 2
