"""Metrics of an answer that is a box, or several, against reference boxes. Every metric returns a fraction in 0..1."""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.bounding_box import Box, iou, parse_boxes

THRESHOLD = 0.5
"""Intersection over union from which a box counts as right, as in referring expression comprehension (Yu et al. 2016, arXiv:1608.00272)."""


@dataclass(frozen=True, slots=True)
class BoxScore:
    """How well an answer's boxes agree with the reference.

    iou: intersection over union. acc_50: whether that is at least THRESHOLD. Of several reference boxes, the mean and the share over pairs
    of boxes. is_malformed: the answer names no box.
    """

    iou: float
    acc_50: float
    is_malformed: bool


def box_score(answer: str, references: Sequence[str]) -> BoxScore:
    """The score of an answer, by the reference with which it agrees best.

    Where the reference is one box, the first box of the answer counts, as RefCOCO is scored. Where it is several, boxes are paired one to
    one, the best pair first, and boxes that are left over on either side count as pairs that agree in nothing.
    """
    predicted = parse_boxes(answer)
    if not predicted:
        return BoxScore(0.0, 0.0, True)
    scores = [_agreement(predicted, expected) for reference in references if (expected := parse_boxes(reference))]
    value, share = max(scores, default=(0.0, 0.0))
    return BoxScore(value, share, False)


def _agreement(predicted: Sequence[Box], expected: Sequence[Box]) -> tuple[float, float]:
    """Mean intersection over union of the pairs, and the share of pairs that reach THRESHOLD."""
    if len(expected) == 1:
        value = iou(predicted[0], expected[0])
        return value, float(value >= THRESHOLD)
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(predicted) for j, b in enumerate(expected)), reverse=True)
    left, right, values = set(range(len(predicted))), set(range(len(expected))), []
    for value, i, j in pairs:
        if i in left and j in right:
            left.discard(i)
            right.discard(j)
            values.append(value)
    count = max(len(predicted), len(expected))
    return sum(values) / count, sum(value >= THRESHOLD for value in values) / count
