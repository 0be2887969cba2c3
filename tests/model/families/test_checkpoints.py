"""Checkpoints of every family: written, read, merged, loaded by stock libraries; what does not fit is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Blip2ForConditionalGeneration, LlavaForConditionalGeneration

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.family import LoadOptions, family_of
from tests.model.families.conftest import Case

FP32 = LoadOptions(torch.float32)
STOCK = {"blip2": Blip2ForConditionalGeneration, "llava": LlavaForConditionalGeneration}


def write(case: Case, model: Any, folder: Path) -> Path:
    case.family.save(model, folder)
    case.processor.save(folder)
    write_manifest(folder)
    return folder


def moved(model: Any) -> Any:
    """The model with every trained weight changed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.02)
    return model


@pytest.mark.parametrize("groups", [("default",), ("vision",), ("language",)], ids=["default", "vision", "language"])
def test_a_saved_model_is_loaded_as_it_was(case: Case, tmp_path: Path, groups: Any) -> None:
    model = moved(case.model(*(case.groups if groups == ("default",) else groups)))
    folder = write(case, model, tmp_path / "c")
    assert family_of(folder) == case.settings().family
    loaded = case.family.load(folder, FP32)
    torch.testing.assert_close(case.logits(loaded), case.logits(model), atol=1e-6, rtol=1e-6)
    assert not any(p.requires_grad for p in loaded.parameters())
    resumed = case.family.load(folder, FP32, trainable=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in resumed.named_parameters() if p.requires_grad} == trainable
    processor = case.family.load_processor(folder)
    assert vars(processor)["max_length"] == case.processor.max_length
    assert processor.end_of_turn_id == case.processor.end_of_turn_id


def test_a_merged_model_gives_the_same_logits(case: Case, tmp_path: Path) -> None:
    model = moved(case.model())
    folder = write(case, model, tmp_path / "c")
    if not case.has_lora:
        with pytest.raises(UsageError, match="no other program reads a ResNet with GPT-2"):
            case.family.export(folder, tmp_path / "m", "merged", torch.float32, None)
        return
    assert case.family.export(folder, tmp_path / "m", "merged", torch.float32, None) == []
    merged = case.family.load(tmp_path / "m", FP32)
    torch.testing.assert_close(case.logits(merged), case.logits(model), atol=5e-4, rtol=1e-3)
    with pytest.raises(UsageError, match=r"it exists already; choose a new folder"):
        case.family.export(folder, tmp_path / "m", "merged", torch.float32, None)


@pytest.mark.parametrize("name", ["blip2_opt", "blip2_t5", "llava_qwen", "llava_llama"])
def test_adapters_load_in_stock_peft(cases: Callable[[str], Case], tmp_path: Path, name: str) -> None:
    case = cases(name)
    # BLIP-2's queries are no module: what is trained of its connector is in a file of its own.
    model = moved(case.model(*(("lora",) if name.startswith("blip2") else ("connector", "lora"))))
    folder = write(case, model, tmp_path / "c")
    stock = STOCK[case.settings().family].from_pretrained(case.settings().path, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(stock, folder)
    own = peft.get_peft_model_state_dict(model)
    theirs = peft.get_peft_model_state_dict(adapted)
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)


def test_a_checkpoint_of_another_family_is_named(cases: Callable[[str], Case], tmp_path: Path) -> None:
    folder = write(cases("blip2_opt"), cases("blip2_opt").model("lora"), tmp_path / "c")
    with pytest.raises(UsageError, match=r"config\.json: settings\.family: "):
        cases("llava_qwen").family.load(folder, FP32)


def test_a_base_model_that_has_changed_is_named(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("blip2_opt")
    base = shutil.copytree(case.settings().path, tmp_path / "base")
    folder = write(case, case.model("lora", path=str(base)), tmp_path / "c")
    case.family.load(folder, FP32)
    other = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**other, "initializer_range": 0.5}))
    with pytest.raises(UsageError, match=r"it was trained on the model in .*base, which holds other weights now"):
        case.family.load(folder, FP32)


def test_a_group_that_does_not_exist_is_named(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("blip2_opt")
    folder = write(case, case.model("lora"), tmp_path / "c")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "trained_groups": ["projector"]}))
    write_manifest(folder)
    with pytest.raises(UsageError, match="trained_groups: projector is no parameter group"):
        case.family.load(folder, FP32)


@pytest.mark.parametrize(
    ("name", "key", "part", "message"),
    [
        ("blip2_opt", "path", "qwen3_vl", "is a qwen3_vl model; a BLIP-2 is expected"),
        ("llava_qwen", "path", "blip2", "is a blip-2 model; a LLaVA is expected"),
        ("resnet_gpt2_vector", "vision", "siglip", "is a siglip model; a resnet is expected"),
        ("resnet_gpt2_vector", "language", "qwen3", "is a qwen3 model; a gpt2 is expected"),
    ],
)
def test_a_base_model_of_another_kind_is_named(
    cases: Callable[[str], Case], parts: Path, name: str, key: str, part: str, message: str
) -> None:
    case = cases(name)
    with pytest.raises(UsageError, match=rf"model\.{key}: .* {message}"):
        case.family.processor(case.settings(**{key: str(parts / part)}))
