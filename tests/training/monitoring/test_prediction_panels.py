import numpy as np
import pytest
from PIL import Image

from answering.rendering import chinese_font
from training.monitoring.prediction_panels import Panel, draw_panel, draw_table

RED = Image.new("RGB", (300, 200), (200, 40, 30))


def test_a_panel_shows_the_image_beside_the_texts() -> None:
    drawn = np.asarray(draw_panel(Panel([RED], "What is this?", "a rectangle", "red")))
    assert (drawn[20:170, 20:250] == (200, 40, 30)).all()
    assert (drawn[:, 270:] < 128).any()


def test_longer_answers_and_more_images_take_more_room() -> None:
    short = draw_panel(Panel([RED], "q", "r", "a"))
    assert draw_panel(Panel([RED], "q", "r", "word " * 200)).height > short.height
    assert draw_panel(Panel([RED, RED, RED], "q", "r", "a")).height > short.height
    assert draw_panel(Panel([], "q", "r", "a")).width < short.width


def test_no_line_is_wider_than_its_column() -> None:
    for text in ("一个红色的圆形" * 40, "word " * 100, "w" * 500):
        drawn = np.asarray(draw_panel(Panel([RED], text, "r", "a")))
        assert (drawn[:, -3:] == 255).all(), text


def test_chinese_characters_are_told_apart_where_a_font_has_them() -> None:
    if chinese_font() is None:
        pytest.skip("no font with Chinese characters is installed")
    one, other = (np.asarray(draw_panel(Panel([], text, "", ""))) for text in ("红", "蓝"))
    assert (one != other).any()


def test_a_table_holds_all_panels() -> None:
    panels = [Panel([RED], "q", "r", "a"), Panel([], "q", "r", "a")]
    assert draw_table(panels).height == sum(draw_panel(panel).height + 1 for panel in panels)
