"""The metrics of boxes, by cases worked out by hand."""

import pytest

from evaluation.metrics.grounding import box_score

REFERENCE = '{"bbox_2d": [0, 0, 200, 100], "label": "x"}'


@pytest.mark.parametrize(
    ("answer", "iou", "acc_50", "is_malformed"),
    [
        (REFERENCE, 1, 1, False),
        ("[0, 0, 200, 100]", 1, 1, False),
        ("[0, 0, 100, 100]", 0.5, 1, False),
        ("[0, 0, 99, 100]", 0.495, 0, False),
        ("[100, 0, 300, 100]", 1 / 3, 0, False),
        ("[500, 500, 600, 600]", 0, 0, False),
        ("[200, 0, 0, 100]", 0, 0, True),
        ("on the left", 0, 0, True),
        ("", 0, 0, True),
        # Where one box is asked for, the first counts.
        ("[500, 500, 600, 600] [0, 0, 200, 100]", 0, 0, False),
    ],
)
def test_one_box(answer: str, iou: float, acc_50: float, is_malformed: bool) -> None:
    score = box_score(answer, [REFERENCE])
    assert score.iou == pytest.approx(iou)
    assert (score.acc_50, score.is_malformed) == (acc_50, is_malformed)


@pytest.mark.parametrize(
    ("answer", "iou", "acc_50"),
    [
        ("[0, 0, 10, 10], [20, 0, 30, 10]", 1, 1),
        ("[20, 0, 30, 10], [0, 0, 10, 10]", 1, 1),
        ("[0, 0, 10, 10]", 0.5, 0.5),
        ("[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]", 2 / 3, 2 / 3),
        ("[0, 0, 10, 10], [0, 0, 10, 5]", 0.5, 0.5),
        ("[0, 0, 10, 10], [25, 0, 35, 10]", (1 + 1 / 3) / 2, 0.5),
    ],
)
def test_several_boxes_are_paired(answer: str, iou: float, acc_50: float) -> None:
    score = box_score(answer, ['[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [20, 0, 30, 10]}]'])
    assert score.iou == pytest.approx(iou)
    assert score.acc_50 == pytest.approx(acc_50)


def test_the_nearest_of_several_references_counts() -> None:
    assert box_score("[0, 0, 200, 100]", ["[0, 0, 10, 10]", REFERENCE]).iou == 1
