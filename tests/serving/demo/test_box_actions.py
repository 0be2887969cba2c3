"""The panel for boxes: marked by two clicks or typed, put into the question, and the boxes of an answer."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from answering.rendering import draw_boxes
from dataset.bounding_box import Box
from serving.demo.box_actions import ANSWERED, MARKED, PREVIEW_SIDE, BoxActions
from serving.demo.localization import translations
from serving.demo.page_actions import PageActions
from serving.demo.session import Conversation, Turn
from serving.demo.upload_folder import UploadFolder

ENGLISH = translations("en")


@pytest.fixture
def wide(uploads: UploadFolder) -> str:
    """An uploaded image of 400 x 200 pixels."""
    path = uploads.path / "wide.png"
    Image.new("RGB", (400, 200), "gray").save(path)
    return str(path)


@pytest.fixture
def boxes(uploads: UploadFolder) -> BoxActions:
    return BoxActions(uploads)


def at(column: int, row: int) -> Any:
    """A click on the preview, in its pixels."""
    return gr.SelectData(None, {"index": [column, row], "value": None})


def colour_box(image: Image.Image, colour: tuple[int, int, int]) -> tuple[float, ...]:
    """The thousandths around the pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(axis=-1))
    ends = columns.min() / image.width, rows.min() / image.height, columns.max() / image.width, rows.max() / image.height
    return tuple(1000 * float(end) for end in ends)


@pytest.mark.parametrize("corners", [((64, 32), (320, 160)), ((320, 160), (64, 32)), ((64, 160), (320, 32))])
def test_two_clicks_on_opposite_corners_are_a_box(boxes: BoxActions, wide: str, corners: tuple[Any, Any]) -> None:
    conversation = Conversation(wide)
    preview, text, status = boxes.click(wide, conversation, "English", at(*corners[0]))
    assert (text, status) == (gr.skip(), "")
    assert preview.size == (PREVIEW_SIDE, PREVIEW_SIDE // 2)
    preview, text, status = boxes.click(wide, conversation, "English", at(*corners[1]))
    assert (text, status) == ("[100, 100, 500, 500]", "")
    assert colour_box(preview, MARKED) == pytest.approx((100, 100, 500, 500), abs=6)
    # A third click begins another box.
    assert boxes.click(wide, conversation, "English", at(0, 0))[1] == gr.skip()


@pytest.mark.parametrize("typed", ["[10, 20, 300, 400]", "10, 20, 300, 400", '{"bbox_2d": [10, 20, 300, 400]}'])
def test_a_typed_box_is_put_into_the_question(boxes: BoxActions, wide: str, typed: str) -> None:
    conversation = Conversation(wide)
    preview, text, question, status = boxes.insert(wide, typed, "What is in ", conversation, "English")
    assert (text, question, status) == ("[10, 20, 300, 400]", "What is in [10, 20, 300, 400]", "")
    assert colour_box(preview, MARKED) == pytest.approx((10, 20, 300, 400), abs=6)


@pytest.mark.parametrize("typed", ["", "on the left", "[300, 20, 10, 400]", "[0, 0, 2000, 10]"])
def test_what_is_no_box_is_a_message(boxes: BoxActions, wide: str, typed: str) -> None:
    *values, status = boxes.insert(wide, typed, "What?", Conversation(wide), "English")
    assert values == [gr.skip()] * 3
    assert status == "⚠️ " + ENGLISH["no_box"].format(found=typed or "–")


def test_one_point_twice_is_a_message(boxes: BoxActions, wide: str) -> None:
    conversation = Conversation(wide)
    boxes.click(wide, conversation, "English", at(64, 32))
    assert boxes.click(wide, conversation, "English", at(64, 32))[2].startswith("⚠️ [100, 100, 100, 100]")


def test_files_that_were_not_uploaded_are_not_opened(boxes: BoxActions, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    conversation = Conversation()
    assert boxes.click(str(secret), conversation, "English", at(1, 1))[2] == "⚠️ " + ENGLISH["not_uploaded"]
    assert boxes.click(None, conversation, "English", at(1, 1))[2] == "⚠️ " + ENGLISH["no_image"]
    assert boxes.show(str(secret), conversation)[0] is None


def test_boxes_of_an_answer_open_the_panel(boxes: BoxActions, wide: str) -> None:
    conversation = Conversation(wide)
    preview, panel = boxes.show(wide, conversation)
    assert preview.size == (PREVIEW_SIDE, PREVIEW_SIDE // 2)
    assert panel == gr.skip()
    conversation.regions.answered = [Box(500, 100, 900, 800)]
    preview, panel = boxes.show(wide, conversation)
    assert colour_box(preview, ANSWERED) == pytest.approx((500, 100, 900, 800), abs=6)
    assert panel == gr.update(open=True)
    conversation.begin_anew(wide)
    assert conversation.regions.answered == []


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("the red circle", ENGLISH["locate_question"].format(expression="the red circle")),
        ("Where is the red circle?", "Where is the red circle?"),
        (" 定位红色的圆形。", "定位红色的圆形。"),
    ],
)
def test_a_name_is_located_by_a_question_for_its_box(page: PageActions, image: str, typed: str, asked: str) -> None:
    conversation = Conversation()
    *_, (_, table, question, status) = page.locate(image, typed, conversation, "English")
    assert [(turn.question, turn.task) for turn in conversation.turns] == [(asked, "grounding")]
    assert (table["data"], question, status) == ([], gr.skip(), "")
    # The next short question is asked as before.
    *_, (chat, *_) = page.ask(image, "What color?", conversation, "English")
    assert len(chat) == 4


def test_boxes_of_an_answer_are_kept_with_its_conversation(page: PageActions, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation()
    monkeypatch.setattr(page.backends.session, "stream", lambda *_: iter(['{"bbox_2d": [1, 2,', '{"bbox_2d": [1, 2, 30, 40]}']))
    list(page.locate(image, "it", conversation, "English"))
    assert conversation.turns == [Turn(ENGLISH["locate_question"].format(expression="it"), '{"bbox_2d": [1, 2, 30, 40]}', "grounding")]
    assert conversation.regions.answered == [Box(1, 2, 30, 40)]


def test_nothing_typed_is_a_message(page: PageActions, image: str) -> None:
    assert list(page.locate(image, " ", Conversation(), "English"))[-1][3] == "⚠️ " + ENGLISH["no_question"]


def test_boxes_at_the_edges_of_an_image_stay_inside_it() -> None:
    marked = draw_boxes(Image.new("RGB", (60, 40)), [(Box(0, 0, 1000, 1000), ANSWERED), (Box(500, 500, 500, 500), MARKED)])
    assert marked.size == (60, 40)
    assert marked.getpixel((0, 20)) == ANSWERED
