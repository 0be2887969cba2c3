"""Sample predictions as images: question, reference answer and prediction next to the input images, for TensorBoard and a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from answering.rendering import side_by_side

RULE_COLOUR = (210, 210, 210)


@dataclass(frozen=True)
class Panel:
    """One sample: input images, question, reference answer, and the model's prediction (`answer`)."""

    images: Sequence[Image.Image]
    question: str
    reference: str
    answer: str


def render_panel(panel: Panel) -> Image.Image:
    """An RGB image: the input images in a column on the left, the three texts on the right."""
    return side_by_side(panel.images, [("question", panel.question), ("reference", panel.reference), ("answer", panel.answer)])


def render_table(panels: Sequence[Panel]) -> Image.Image:
    """All panels in one RGB image, stacked with a thin line below each. panels: at least one."""
    rows = [render_panel(panel) for panel in panels]
    table = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 1 for row in rows)), RULE_COLOUR)
    top = 0
    for row in rows:
        table.paste("white", (0, top, table.width, top + row.height))
        table.paste(row, (0, top))
        top += row.height + 1
    return table
