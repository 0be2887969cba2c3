"""A raw source of drawn images, and the YAML of a run that streams it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from tests.training.conftest import COLOURS, write_yaml


def write_source(folder: Path, samples: int = 24) -> Path:
    """Conversations about drawn images, with answers of different lengths; every seventh has no image."""
    folder.mkdir()
    records: list[dict[str, Any]] = []
    for i in range(samples):
        image = Image.new("RGB", (96, 96), "grey")
        ImageDraw.Draw(image).ellipse((20, 20, 40 + i, 76), fill=COLOURS[i % 8])
        image.save(folder / f"{i}.png")
        answer = f"{COLOURS[i % 8]} {i} " + "of a circle " * (i % 3)
        question = "What is it?" if i % 7 == 6 else "<image>\nWhat is it?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer.strip()}]
        records.append({"id": str(i), "conversations": turns, **({} if i % 7 == 6 else {"image": f"{i}.png"})})
    (folder / "talks.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def streamed(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the source and the YAML of a short streamed run into an empty folder, the current one; arguments are keys of `train`."""
    monkeypatch.chdir(tmp_path)
    folder = write_source(tmp_path / "raw")

    def configure(**train: Any) -> Path:
        path = write_yaml(tmp_path, parts, **train)
        source = {"format": "llava", "annotations": str(folder / "talks.json")}
        split = {"validation": 0.0, "test": 0.0}
        content = {**yaml.safe_load(path.read_text()), "data": {"streaming": True, "sources": [source], "split": split}}
        path.write_text(yaml.safe_dump(content))
        return path

    return configure
