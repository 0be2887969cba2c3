"""The images of a folder that failed: all in a file, the first ones on the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from atomic_io import write_text

SEARCH_FAILED_FILE = "search_failed.jsonl"
"""List of the images that could not be indexed, in the folder of results."""
MAX_SHOWN = 10
"""Largest number of failed images that are named on the terminal."""


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image file and why it failed."""

    image: str
    errors: tuple[str, ...]

    def line(self) -> str:
        """Name and reasons in one line."""
        return f"{self.image}: {'; '.join(self.errors)}"


def list_failed(failed: Sequence[FailedImage], path: Path) -> list[str]:
    """Write one JSON line for each failed image; without any, remove the list of an earlier run.

    Returns:
        Lines for the terminal: the first images, then the file with all of them; empty if none failed.
    """
    if not failed:
        path.unlink(missing_ok=True)
        return []
    write_text(path, _printable("".join(json.dumps(asdict(image), ensure_ascii=False) + "\n" for image in failed)))
    return [*(f"  {_printable(image.line())}" for image in failed[:MAX_SHOWN]), f"all {len(failed):,} failed images: {path}"]


def _printable(text: str) -> str:
    """The text with lone surrogates, from file names that are not UTF-8, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
