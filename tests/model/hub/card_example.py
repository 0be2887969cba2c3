"""Runs the Python example of a model card."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGE_AND_QUESTION = re.compile(r"^image, question = .*$", re.M)


def load_example(folder: Path) -> Callable[[Path, str], str]:
    """Load the model of an exported folder as its card does.

    Returns:
        Function of an image file and a question that runs the rest of the example on them and returns the answer.
    """
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    loading, line, asking = code.partition(IMAGE_AND_QUESTION.findall(code)[0])
    assert line
    names: dict[str, Any] = {}
    current = Path.cwd()
    os.chdir(folder)
    try:
        exec(loading, names)
    finally:
        os.chdir(current)
    names["model"].eval()

    def ask(image: Path, question: str) -> str:
        exec(asking, {**names, "image": str(image), "question": question}, answered := {"answer": ""})
        return answered["answer"]

    return ask
