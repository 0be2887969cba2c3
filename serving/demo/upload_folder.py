"""The page's own folder of uploaded files: a private temporary folder, and the only place from which its handlers open files.

What the browser names is a path on the server. Gradio checks it only if the request marks it as a file.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
