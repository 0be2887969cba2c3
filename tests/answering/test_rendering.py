"""Texts are rendered next to images, inside the canvas, with line breaks as their language has them."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from answering.rendering import IMAGE_SIDE, MARGIN, TEXT_WIDTH, chinese_font, side_by_side, text_font, wrap_text


def test_images_are_on_the_left_and_text_is_on_the_right() -> None:
    canvas = side_by_side(
        [Image.new("RGB", (100, 50), "red"), Image.new("RGB", (50, 100), "blue")], [("Question", "What?"), ("Answer", "red")]
    )
    colours = {colour for _, colour in canvas.crop((MARGIN, MARGIN, MARGIN + IMAGE_SIDE, canvas.height)).getcolors(2**24) or []}
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours
    right = canvas.crop((IMAGE_SIDE + 2 * MARGIN, 0, canvas.width, canvas.height)).convert("L")
    assert right.getextrema() == (0, 255)


def test_text_without_images_has_no_image_column() -> None:
    assert side_by_side([], [("Question", "What?")]).width == TEXT_WIDTH + 2 * MARGIN


@pytest.mark.parametrize("text", ["word " * 60, "很长的中文" * 40, "x" * 300, "mixed 中文 and English, " * 20, "two\nlines", ""])
def test_no_line_is_wider_than_its_column_and_no_text_is_lost(text: str) -> None:
    font = text_font(18)
    lines = wrap_text(text, font, TEXT_WIDTH)
    assert all(font.getlength(line.rstrip()) <= TEXT_WIDTH for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_english_breaks_between_words() -> None:
    lines = wrap_text("alpha beta gamma " * 20, text_font(18), TEXT_WIDTH)
    assert {word for line in lines for word in line.split()} == {"alpha", "beta", "gamma"}


def test_a_font_is_chosen_by_its_characters_and_not_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    latin = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    pretender, broken = tmp_path / "NotoSansCJK-Regular.ttf", tmp_path / "simhei.ttf"
    pretender.write_bytes(latin.read_bytes())
    broken.write_bytes(b"no font")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(pretender), str(broken)])
    chinese_font.cache_clear()
    try:
        assert chinese_font() is None
        assert text_font(18).getname()[0] == "DejaVu Sans"
    finally:
        chinese_font.cache_clear()
