"""What the panel for boxes of the demo page does: a person clicks on two corners or types four numbers, and puts the box into the question;
boxes of an answer are marked over the image."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from answering.rendering import draw_boxes
from answering.request_images import scale_to_side
from dataset.bounding_box import FULL, Box, parse_boxes
from dataset.loading.image_io import open_image
from errors import TesseraError
from serving.demo.localization import PageError, error_text
from serving.demo.session import Conversation, Regions
from serving.demo.upload_folder import UploadFolder

PREVIEW_SIDE = 640
"""Longer side of the image with boxes, in pixels."""
ANSWERED, MARKED = (229, 72, 77), (11, 98, 168)
"""Colours of the boxes of an answer, and of the one that a person draws."""


class BoxActions:
    """The actions of the panel. uploads: the only folder whose files are opened."""

    def __init__(self, uploads: UploadFolder):
        self.uploads = uploads

    def show(self, image: str | None, conversation: Conversation) -> tuple[Any, Any]:
        """Values of the image with its boxes, and of the panel, which opens when an answer has boxes."""
        try:
            preview = self._preview(image, conversation.regions)
        except TesseraError:
            preview = None  # the question itself says why the image cannot be used
        return preview, gr.update(open=True) if conversation.regions.answered else gr.skip()

    def click(self, image: str | None, conversation: Conversation, language: str, event: gr.SelectData) -> tuple[Any, Any, str]:
        """Values of the image, of the box as text, and status, after a click on the image: the first is a corner, the second the opposite
        one."""
        regions = conversation.regions
        try:
            size = self._opened(image).size
            column, row = (float(value) for value in event.index)
            corner = min(FULL, max(0.0, FULL * column / size[0])), min(FULL, max(0.0, FULL * row / size[1]))
            if regions.corner is None:
                regions.corner = corner
                return self._preview(image, regions), gr.skip(), ""
            (x1, x2), (y1, y2) = (sorted(pair) for pair in zip(regions.corner, corner, strict=True))
            regions.corner = None
            regions.marked = _checked(Box(x1, y1, x2, y2).text())
            return self._preview(image, regions), regions.marked.text(), ""
        except TesseraError as error:
            return gr.skip(), gr.skip(), error_text(error, language)

    def insert(self, image: str | None, text: str, question: str, conversation: Conversation, language: str) -> tuple[Any, ...]:
        """Values of the image, of the box as text, of the question, which the box is put into, and status."""
        try:
            self._opened(image)
            box = _checked(text)
            conversation.regions.marked, conversation.regions.corner = box, None
            preview = self._preview(image, conversation.regions)
        except TesseraError as error:
            return gr.skip(), gr.skip(), gr.skip(), error_text(error, language)
        return preview, box.text(), f"{question.rstrip()} {box.text()}".strip(), ""

    def _preview(self, image: str | None, regions: Regions) -> Image.Image | None:
        """The image with the boxes of the last answer and the one that is marked. Raises PageError and ImageError."""
        if not image:
            return None
        marked = [] if regions.marked is None else [regions.marked]
        if regions.corner is not None:
            x, y = regions.corner
            marked = [Box(x - 8, y - 8, x + 8, y + 8)]
        return draw_boxes(self._opened(image), [(box, ANSWERED) for box in regions.answered] + [(box, MARKED) for box in marked])

    def _opened(self, name: str | None) -> Image.Image:
        """The chosen image in the size of the preview. Raises PageError and ImageError."""
        if not name:
            raise PageError("no_image")
        path: Path = self.uploads.checked(name)
        return scale_to_side(open_image(path), PREVIEW_SIDE)


def _checked(text: str) -> Box:
    """The first box that a text names. Raises PageError when it names none."""
    boxes = parse_boxes(text if "[" in text else f"[{text}]")
    if not boxes:
        raise PageError("no_box", found=text.strip() or "–")
    return boxes[0]
