"""The example of docs/checkpoints.md is valid and runs; both languages show the same code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import config as configuration
from dataset.build.merge import merge
from model.siglip_qwen.config import SiglipQwenConfig
from tests.pipeline import ROOT

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("checkpoints.md", "zh/checkpoints.md")}


def blocks(language: str, page: str = "checkpoints.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("language", ["python", "yaml", "text"])
def test_both_pages_have_the_same_code(language: str) -> None:
    assert blocks(language, "zh/checkpoints.md") == blocks(language) != []


def test_the_examples_configuration_is_valid_and_starts_from_the_demos_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")
    shapes, demo = configuration.load(path), configuration.load(ROOT / "configs" / "tiny.yaml")
    assert isinstance(shapes.model, SiglipQwenConfig) and isinstance(demo.model, SiglipQwenConfig)
    assert (shapes.model.vision, shapes.model.language) == (demo.model.vision, demo.model.language)
    steps = sum(stage.max_steps or 0 for stage in demo.train.stages)
    assert shapes.train.init_from == demo.checkpoint_folder / f"checkpoint-{steps}"


def test_the_examples_conversion_gives_a_source_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        folder = tmp_path / "raw" / "easy-VQA" / "data" / split
        (folder / "images").mkdir(parents=True)
        (folder / "questions.json").write_text(json.dumps([["what color is the shape?", "red", 0], ["is there a circle?", "no", 1]]))
        for image in (0, 1):
            Image.new("RGB", (64, 64), (image, 9, len(split))).save(folder / "images" / f"{image}.png")
    subprocess.run([sys.executable, "-c", blocks("python")[0]], check=True)
    Path("shapes.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    shapes = configuration.load(Path("shapes.yaml"))
    assert merge(shapes.data, shapes.data_folder).samples == 4
