"""The page's image input, and its own folder of uploaded files: a private temporary folder, the only one whose files its handlers open.

What the browser names is a path on the server. Gradio checks it only if the request marks it as a file.
"""

import os
import stat
import tempfile
from abc import ABCMeta
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from serving.demo.localization import PageError

GRADIO_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"
"""Environment variable in which gradio looks for its folder, when a component is made and at each request."""


class UploadFolder:
    """Uploaded files, and gradio's copies of the example images. path: the folder."""

    def __init__(self, path: Path):
        self.path = path.resolve()

    def checked(self, name: str) -> Path:
        """The path of a regular file below the folder, without symbolic links.

        Raises PageError, the same for every other file, so that nobody learns which files the server has. A path outside is refused
        by its name alone; a FIFO or a device is never opened.
        """
        try:
            path = Path(os.path.abspath(name))  # noqa: PTH100 - Path.absolute keeps `..`, Path.resolve asks the file system
            if path.is_relative_to(self.path):
                path = path.resolve(strict=True)
                if path.is_relative_to(self.path) and stat.S_ISREG(path.lstat().st_mode):
                    return path
        except (OSError, ValueError) as error:
            # ValueError: a null byte or a lone surrogate in the name.
            raise PageError("not_uploaded") from error
        raise PageError("not_uploaded")


@contextmanager
def private_upload_folder() -> Iterator[UploadFolder]:
    """A new folder that only this user can read, as gradio's folder of this process while the context is open; then it is removed.

    It is made in the folder that GRADIO_TEMP_DIR names, if it is set, else in the system's temporary folder.
    """
    parent = os.environ.get(GRADIO_FOLDER_VARIABLE)
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tessera-page-", dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ[GRADIO_FOLDER_VARIABLE] = str(Path(folder).resolve())
        try:
            yield UploadFolder(Path(folder))
        finally:
            if parent is None:
                del os.environ[GRADIO_FOLDER_VARIABLE]
            else:
                os.environ[GRADIO_FOLDER_VARIABLE] = parent


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
