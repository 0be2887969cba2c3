"""A model is what its files hold, wherever they stand and whenever they were written."""

import json
import os
import shutil
from pathlib import Path

import pytest

from answering.model_fingerprint import comparable, fingerprint, identity, scorer_identity
from answering.protocol import Description


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder, and the folder of the language model that it names."""
    base, folder = tmp_path / "qwen", tmp_path / "checkpoint-1"
    for path, config in ((base, {}), (folder, {"settings": {"language": str(base), "vision": "google/siglip"}})):
        (path / "trainer").mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (path / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_copied_model_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    original = identity(Description("checkpoint", {"path": str(checkpoint), "quantization": "none"}))
    copied = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint-9", copy_function=shutil.copyfile)
    for path in copied.rglob("*"):
        os.utime(path, ns=(1, 1))
    moved = identity(Description("checkpoint", {"path": str(copied), "quantization": "none"}))
    assert original["path"] != moved["path"]
    assert comparable(original) == comparable(moved)
    assert scorer_identity(str(checkpoint), "sentence") == scorer_identity(str(copied), "sentence")
    assert comparable({**moved, "quantization": "nf4"}) != comparable(moved)


@pytest.mark.parametrize("changed", ["checkpoint-1/model.safetensors", "checkpoint-1/config.json", "qwen/model.safetensors"])
def test_a_model_trained_again_or_on_another_base_is_another_model(checkpoint: Path, tmp_path: Path, changed: str) -> None:
    before, path = fingerprint(checkpoint), tmp_path / changed
    path.write_bytes(path.read_bytes().replace(b"weights", b"WEIGHTS").replace(b"{", b"{ "))
    assert fingerprint(checkpoint) != before


def test_the_model_card_and_the_trainers_state_are_no_part_of_the_model(checkpoint: Path) -> None:
    before = fingerprint(checkpoint)
    (checkpoint / "README.md").write_text("our best one", encoding="utf-8")
    (checkpoint / "trainer" / "optimizer.pt").write_bytes(b"moments")
    assert fingerprint(checkpoint) == before


def test_a_model_of_the_hub_is_known_by_its_name_alone() -> None:
    model = identity(Description("qwen3_vl", {"path": "Qwen/Qwen3-VL-2B-Instruct"}))
    assert model == comparable(model) == {"kind": "qwen3_vl", "path": "Qwen/Qwen3-VL-2B-Instruct"}
    assert scorer_identity("openai/clip", "joined") == "openai/clip, joined"


def test_an_adapter_in_a_folder_counts_by_its_content(checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    models = [identity(Description("blip2", {"path": "Salesforce/blip2", "adapter": path})) for path in (checkpoint, copied, None)]
    assert comparable(models[0]) == comparable(models[1]) != comparable(models[2])
