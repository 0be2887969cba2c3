"""The image input of the page: gradio's, without its decoding and without its downloads."""

import os
from abc import ABCMeta
from pathlib import Path
from typing import Any

# Set before the import, which reads it: no analytics are sent.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio_client.utils import is_http_url_like


class _UploadsOnly:
    """What is different from gradio's image. A class and no attributes of one component: gradio makes a new component of the same
    class for a browser whose component is updated, such as by another language."""

    def get_block_name(self) -> str:
        """The name of the component in gradio's frontend."""
        return "image"

    def preprocess(self, payload: Any) -> str | None:
        """The path that the browser names, not opened: the handlers check it. Gradio would open it, wherever it is."""
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """As gradio's, which would also download a URL that the browser names."""
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gr.Error("an image is uploaded, not fetched from a URL")
        moved: str | None = await super().async_move_resource_to_block_cache(url_or_file_path)  # type: ignore[misc]
        return moved


# Made by ABCMeta itself: gradio's own metaclass would write a .pyi file next to this one.
UploadedImage: type[gr.Image] = ABCMeta.__new__(type(gr.Image), "UploadedImage", (_UploadsOnly, gr.Image), {"__module__": __name__})
