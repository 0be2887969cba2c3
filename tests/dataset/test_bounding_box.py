"""Boxes: their text, what becomes of them when an image is turned, and their agreement."""

import random

import numpy as np
import pytest
from PIL import Image

from dataset.bounding_box import Box, RawBox, box_answer, fill, iou, is_box_answer, parse_boxes, refill
from dataset.loading.image_io import to_rgb

BOX = Box(100.4, 250, 400.6, 1000)


def test_a_box_is_written_as_whole_numbers_from_0_to_1000() -> None:
    assert BOX.text() == "[100, 250, 401, 1000]"
    assert Box(-0.4, 0, 1000.4, 1003).text() == "[0, 0, 1000, 1000]"


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ('{"bbox_2d": [1, 2, 30, 40], "label": "the red circle"}', [Box(1, 2, 30, 40)]),
        ('```json\n[{"bbox_2d": [1,2,30,40]}, {"bbox_2d": [5, 6, 7, 8]}]\n```', [Box(1, 2, 30, 40), Box(5, 6, 7, 8)]),
        ("It is at [1.5, 2, 30, 40].", [Box(1.5, 2, 30, 40)]),
        ("<|box_start|>(1,2),(30,40)<|box_end|>", [Box(1, 2, 30, 40)]),
        ('{"bbox_2d": [1, 2, 30', []),
        ("[30, 2, 1, 40]", []),
        ("[1, 2, 30, 1040]", []),
        ("[1, 2, 30]", []),
        ("the red circle", []),
    ],
)
def test_answers_are_read_whatever_stands_around_the_box(answer: str, boxes: list[Box]) -> None:
    assert parse_boxes(answer) == boxes


def test_the_answer_form_is_recognised_with_its_placeholder_and_with_its_box() -> None:
    answer = box_answer('the "big" circle')
    assert is_box_answer(answer)
    assert is_box_answer(f"[{answer}, {answer}]")
    assert is_box_answer(fill([answer], [(0, BOX)])[0][0])
    assert not is_box_answer(f"It is {answer}")
    assert not is_box_answer("[]")
    assert not is_box_answer("red")


def test_boxes_take_the_places_of_their_placeholders_and_can_be_exchanged() -> None:
    texts, regions = fill(["<bbox> or <bbox>?", "it is <bbox>"], [(0, Box(1, 2, 3, 4)), (1, Box(5, 6, 7, 8)), (0, BOX)])
    assert texts == ["[1, 2, 3, 4] or [5, 6, 7, 8]?", "it is [100, 250, 401, 1000]"]
    assert [(region.image, region.turn, region.start) for region in regions] == [(0, 0, 0), (1, 0, 16), (0, 1, 6)]
    wide = [Box(1000, 1000, 1000, 1000)] * 3
    changed, moved = refill(texts, regions, wide)
    assert changed == ["[1000, 1000, 1000, 1000] or [1000, 1000, 1000, 1000]?", "it is [1000, 1000, 1000, 1000]"]
    assert refill(changed, moved, [region.box for region in regions]) == (texts, regions)


def white_box(image: Image.Image) -> Box:
    """The box of the white pixels of a black image."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > 127)
    size = np.array([image.width, image.height] * 2)
    return Box(*(1000 * np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size).tolist())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("in_pixels", [True, False])
def test_a_box_of_a_stored_image_follows_its_exif_rotation(orientation: int, in_pixels: bool) -> None:
    stored = Image.new("RGB", (200, 100))
    stored.paste("white", (20, 10, 60, 90))
    stored.getexif()[0x0112] = orientation
    corners = (20.0, 10.0, 60.0, 90.0) if in_pixels else (100.0, 100.0, 300.0, 900.0)
    upright = to_rgb(stored)
    box = RawBox(0, corners, in_pixels, is_stored=True).upright(upright.size, orientation)
    assert box == pytest.approx(white_box(upright))


def test_a_box_of_the_upright_image_stays_whatever_the_exif_rotation() -> None:
    assert RawBox(0, (20, 10, 60, 90)).upright((100, 200), 6) == Box(200, 50, 600, 450)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((60, 10, 20, 90), "corners exchanged"),
        ((20, 10, 20, 90), "no area"),
        ((20, 10, 60, 102), "outside its image of 200 x 100 pixels"),
        ((-3, 10, 60, 90), "outside"),
        ((200.5, 10, 201, 90), "outside"),
        ((float("nan"), 10, 60, 90), "no number"),
    ],
)
def test_a_box_that_its_image_cannot_have_is_refused_in_one_sentence(corners: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RawBox(0, corners).upright((200, 100))


def test_what_stands_out_by_less_than_a_pixel_is_cut_off() -> None:
    assert RawBox(0, (-0.5, 10, 200.9, 100.4)).upright((200, 100)) == Box(0, 100, 1000, 1000)


def test_boxes_are_mirrored_and_rotated_as_the_pixels_are() -> None:
    image = Image.new("RGB", (400, 240))
    image.paste("white", (100, 60, 220, 110))
    box = white_box(image)
    assert box.mirrored() == pytest.approx(white_box(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    for angle in (-15, -4, 3, 12):
        turned = white_box(image.rotate(angle, Image.Resampling.BICUBIC))
        assert box.rotated(angle, 400 / 240) == pytest.approx(turned, abs=6), angle


def test_intersection_over_union_agrees_with_counted_cells() -> None:
    rng = random.Random(0)

    def cells(box: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(int(box.x1), int(box.x2)) for y in range(int(box.y1), int(box.y2))}

    def sampled() -> Box:
        (x1, x2), (y1, y2) = (sorted(rng.sample(range(20), 2)) for _ in range(2))
        return Box(x1, y1, x2, y2)

    for _ in range(200):
        a, b = sampled(), sampled()
        assert iou(a, b) == pytest.approx(len(cells(a) & cells(b)) / len(cells(a) | cells(b)))
    assert iou(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0
