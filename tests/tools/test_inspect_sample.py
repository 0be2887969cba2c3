"""`tools/inspect_sample.py` from the command line."""

from pathlib import Path

import pytest
import yaml

import cli
from tests.dataset.raw_files import RawFiles, conversation
from tools import inspect_sample


@pytest.fixture
def config(tmp_path: Path, parts: Path) -> Path:
    """Configuration with merged data and the small models."""
    raw = RawFiles(tmp_path)
    raw.image("a.png")
    raw.merge(raw.llava([conversation("a.png", "What color?", "red"), conversation("a.png", "How many?", "2")]))
    path = tmp_path / "config.yaml"
    model = {"vision": str(parts / "siglip"), "language": str(parts / "qwen3"), "max_length": 512}
    path.write_text(yaml.safe_dump({"name": "small", "data": {"folder": str(raw.merged)}, "model": model}), encoding="utf-8")
    return path


def status_of(config: Path, *arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.run(inspect_sample.main, inspect_sample.parser, ["--config", str(config), *arguments])
    return ended.value.code


def test_a_sample_is_selected_by_its_id(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(config, "--sample", "llava/1") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("llava/1: conversation, en, train, from llava\n")
    assert "'<|image_pad|>' x 36" in shown
    assert "\n+ " in shown
    assert shown.endswith("target: '2'\nanswer: '2'\n")


def test_an_index_out_of_range_exits_with_status_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(config, "--index", "2") == 2
    assert "has the rows 0 to 1" in capsys.readouterr().err


def test_a_missing_model_folder_exits_with_status_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(config, "model.vision=./nowhere") == 2
    assert "model.vision" in capsys.readouterr().err
