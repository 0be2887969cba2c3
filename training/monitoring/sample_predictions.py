"""The model's greedy answers to a few validation samples, and panels that show them next to question, reference answer and images."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import nn

from answering.decoding.candidates import candidate_key
from answering.protocol import Answer, Decoding, Request
from answering.rendering import IMAGE_SIDE, TEXT_WIDTH, draw_boxes, side_by_side
from answering.systems.family_answerer import FamilyAnswerer
from dataset.bounding_box import parse_boxes
from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from dataset.sample import Sample, question_text
from model.kernels.autocast import Precision, autocast
from model.processors.sample_processor import SampleProcessor

ANSWER_TOKENS = 64
"""Most new tokens of an answer."""
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


def generate_panels(
    model: nn.Module, processor: SampleProcessor, store: SampleStore, samples: Sequence[Sample], precision: Precision
) -> list[Panel]:
    """A panel for each sample: its first target next to the model's greedy answer, under the autocast of `precision` as in training."""
    requests = [
        Request(sample.sample_id, tuple(store.image(i).path for i in sample.image_ids), sample.messages, sample.task, sample.language)
        for sample in samples
    ]
    answerer = FamilyAnswerer(model, processor)
    with autocast(answerer.device, precision):
        answers = answerer.answer(requests, Decoding(num_candidates=1, strategy="greedy", max_new_tokens=ANSWER_TOKENS))
    return [_panel(store, sample, answer) for sample, answer in zip(samples, answers, strict=True)]


def _panel(store: SampleStore, sample: Sample, answer: Answer) -> Panel:
    """The panel of an answer; "..." stands for earlier turns, and a short-answer question decides whether it is right. Of a question for a
    box, the reference is drawn in green over the image and the answer in red."""
    text = "" if answer.error else answer.first.text
    try:
        images = [store.load_image(i) for i in sample.image_ids]
    except ImageError:
        images = []  # one cannot be read, which the answer says
    expected, predicted = (parse_boxes(sample.targets[0]), parse_boxes(text)) if sample.task == "grounding" else ([], [])
    if len(images) == 1 and expected:
        coloured = [(box, VERDICT_COLOURS[RIGHT]) for box in expected] + [(box, VERDICT_COLOURS[WRONG]) for box in predicted]
        images = [draw_boxes(images[0], coloured)]
    return Panel(
        images=images,
        question=("... " if len(sample.messages) > 1 else "") + question_text(sample.messages[-1].content),
        reference=sample.targets[0],
        answer=f"(error: {answer.error})" if answer.error else text or "(empty)",
        is_right=candidate_key(text) in map(candidate_key, sample.targets) if sample.task == "vqa" else None,
    )
