"""Pictures with question, reference and the model's answer, drawn for TensorBoard and for the table at the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from answering.rendering import side_by_side

RULE_COLOUR = (210, 210, 210)


@dataclass(frozen=True)
class Panel:
    """What was asked about which pictures, what stands in the data, and what the model says."""

    images: Sequence[Image.Image]
    question: str
    reference: str
    answer: str


def draw_panel(panel: Panel) -> Image.Image:
    """An RGB image: the pictures on the left, one below the other, the three texts on the right."""
    return side_by_side(panel.images, [("question", panel.question), ("reference", panel.reference), ("answer", panel.answer)])


def draw_table(panels: Sequence[Panel]) -> Image.Image:
    """All panels in one RGB image, one below the other with a rule between. panels: at least one."""
    rendered = [draw_panel(panel) for panel in panels]
    table = Image.new("RGB", (max(one.width for one in rendered), sum(one.height + 1 for one in rendered)), RULE_COLOUR)
    top = 0
    for one in rendered:
        table.paste("white", (0, top, table.width, top + one.height))
        table.paste(one, (0, top))
        top += one.height + 1
    return table
