"""Sample predictions as images: question, reference answer and prediction next to the input images, for TensorBoard and a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from answering.rendering import IMAGE_SIDE, TEXT_WIDTH, side_by_side

RULE_COLOUR = (210, 210, 210)
RIGHT, WRONG = "answer: right", "answer: wrong"
VERDICT_COLOURS = {RIGHT: (26, 127, 75), WRONG: (179, 38, 30)}
COLUMNS, COMPACT_IMAGE, COMPACT_TEXT = 2, 200, 330
"""Of a table: panels side by side, side of an image and width of the texts in pixels."""


@dataclass(frozen=True)
class Panel:
    """One sample: input images, question, reference answer, the model's prediction (`answer`), and whether that is right.

    is_right: None for captions and conversations, which no reference decides.
    """

    images: Sequence[Image.Image]
    question: str
    reference: str
    answer: str
    is_right: bool | None = None


def render_panel(panel: Panel, image_side: int = IMAGE_SIDE, text_width: int = TEXT_WIDTH) -> Image.Image:
    """An RGB image: the input images in a column on the left, the three texts on the right, whether the answer is right in colour."""
    verdict = "answer" if panel.is_right is None else RIGHT if panel.is_right else WRONG
    texts = [("question", panel.question), ("reference", panel.reference), (verdict, panel.answer)]
    return side_by_side(panel.images, texts, image_side=image_side, text_width=text_width, label_colours=VERDICT_COLOURS)


def render_table(panels: Sequence[Panel]) -> Image.Image:
    """All panels in one RGB image, COLUMNS side by side, with a thin line below each row. panels: at least one."""
    rendered = [render_panel(panel, COMPACT_IMAGE, COMPACT_TEXT) for panel in panels]
    rows = [rendered[start : start + COLUMNS] for start in range(0, len(rendered), COLUMNS)]
    width = max(panel.width for panel in rendered)
    heights = [max(panel.height for panel in row) for row in rows]
    table = Image.new("RGB", (width * min(COLUMNS, len(panels)), sum(height + 1 for height in heights)), RULE_COLOUR)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        table.paste("white", (0, top, table.width, top + height))
        for column, panel in enumerate(row):
            table.paste(panel, (column * width, top))
        top += height + 1
    return table
