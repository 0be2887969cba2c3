import numpy as np
import pytest
from PIL import Image

from answering.rendering import chinese_font
from training.monitoring.sample_predictions import COMPACT_IMAGE, COMPACT_TEXT, Panel, render_panel, render_table

RED = Image.new("RGB", (300, 200), (200, 40, 30))


def test_a_panel_shows_the_image_next_to_the_texts() -> None:
    pixels = np.asarray(render_panel(Panel([RED], "What is this?", "a rectangle", "red")))
    assert (pixels[20:170, 20:250] == (200, 40, 30)).all()
    assert (pixels[:, 270:] < 128).any()


def test_longer_answers_and_more_images_make_a_larger_panel() -> None:
    short = render_panel(Panel([RED], "q", "r", "a"))
    assert render_panel(Panel([RED], "q", "r", "word " * 200)).height > short.height
    assert render_panel(Panel([RED, RED, RED], "q", "r", "a")).height > short.height
    assert render_panel(Panel([], "q", "r", "a")).width < short.width


def test_no_line_is_wider_than_its_column() -> None:
    for text in ("一个红色的圆形" * 40, "word " * 100, "w" * 500):
        pixels = np.asarray(render_panel(Panel([RED], text, "r", "a")))
        assert (pixels[:, -3:] == 255).all(), text


def test_different_chinese_characters_look_different_when_a_font_has_them() -> None:
    if chinese_font() is None:
        pytest.skip("no font with Chinese characters is installed")
    red, blue = (np.asarray(render_panel(Panel([], text, "", ""))) for text in ("红", "蓝"))
    assert (red != blue).any()


def test_a_table_has_two_panels_side_by_side() -> None:
    panels = [Panel([RED], "q", "r", "a"), Panel([], "q", "r", "a"), Panel([RED], "q", "r", "word " * 60)]
    compact = [render_panel(panel, COMPACT_IMAGE, COMPACT_TEXT) for panel in panels]
    table = render_table(panels)
    assert table.size == (2 * compact[0].width, compact[0].height + compact[2].height + 2)
    assert table.crop((0, 0, *compact[0].size)).tobytes() == compact[0].tobytes()


@pytest.mark.parametrize(("is_right", "colour"), [(True, (26, 127, 75)), (False, (179, 38, 30))])
def test_right_and_wrong_answers_are_marked_in_colour(is_right: bool, colour: tuple[int, int, int]) -> None:
    marked, plain = (np.asarray(render_panel(Panel([], "q", "r", "a", verdict))) for verdict in (is_right, None))
    assert (marked == colour).all(axis=2).any() and not (plain == colour).all(axis=2).any()
