"""Checkpoints of Qwen vision-language models: written, read, merged, loaded by stock libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.family import LoadOptions, family, family_of
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.family import FAMILY
from model.qwen_vl.modeling import CLASSES, QWEN_VL
from model.qwen_vl.processor import QwenVlProcessor
from model.stock.stock_family import NOT_MODEL_INPUTS
from tests.model.qwen_vl.conftest import Build

FP32 = LoadOptions(torch.float32)
GROUPS = [("lora",), ("connector", "lora"), ("connector",), ("vision", "lora"), ("language",)]


def write(model: Any, folder: Path, processor: QwenVlProcessor) -> Path:
    FAMILY.save(model, folder)
    processor.save(folder)
    write_manifest(folder)
    return folder


def moved(model: Any) -> Any:
    """The model with every trained weight changed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.02)
    return model


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key not in NOT_MODEL_INPUTS}
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**inputs).logits
    return result


@pytest.mark.parametrize("groups", GROUPS)
def test_a_saved_model_is_loaded_as_it_was(
    trained: Build, batch: dict[str, Any], processor: QwenVlProcessor, tmp_path: Path, groups: Any
) -> None:
    model = moved(trained(*groups))
    folder = write(model, tmp_path / "c", processor)
    assert family_of(folder) == "qwen_vl"
    assert torch.equal(logits(FAMILY.load(folder, FP32), batch), logits(model, batch))
    resumed = FAMILY.load(folder, FP32, trainable=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in resumed.named_parameters() if p.requires_grad} == trainable
    assert FAMILY.load_processor(folder).max_length == processor.max_length


def test_adapters_and_merger_load_in_stock_peft(
    trained: Build, batch: dict[str, Any], processor: QwenVlProcessor, folder: Path, tmp_path: Path
) -> None:
    model = moved(trained("connector", "lora"))
    saved = write(model, tmp_path / "c", processor)
    stock = CLASSES[QWEN_VL.read_config("path", str(folder)).model_type].from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(stock, saved), batch), logits(model, batch))


def test_a_merged_model_is_one_that_transformers_loads(
    trained: Build, batch: dict[str, Any], processor: QwenVlProcessor, tmp_path: Path
) -> None:
    model = moved(trained("connector", "lora"))
    saved, out = write(model, tmp_path / "c", processor), tmp_path / "merged"
    assert FAMILY.export(saved, out, "merged", torch.float32, None) == []
    stock = CLASSES[QWEN_VL.read_config("path", str(out)).model_type].from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(stock, batch), logits(model, batch), atol=1e-4, rtol=1e-4)
    assert family_of(out) == "qwen_vl"
    assert torch.equal(logits(FAMILY.load(out, FP32), batch), logits(stock, batch))
    assert FAMILY.load_processor(out).max_length == processor.max_length
    with pytest.raises(UsageError, match="a whole model, which does not say what it was tuned from"):
        FAMILY.settings(out)
    with pytest.raises(UsageError, match=r"--format llava: a qwen_vl model has a layout of its own"):
        FAMILY.export(saved, tmp_path / "l", "llava", torch.float32, None)


def test_merging_after_qlora_uses_the_unquantised_base_model(
    trained: Build, batch: dict[str, Any], processor: QwenVlProcessor, tmp_path: Path
) -> None:
    four_bit = trained("lora", quantization="nf4")
    saved = write(four_bit, tmp_path / "c", processor)
    FAMILY.export(saved, tmp_path / "m", "merged", torch.float32, None)
    torch.testing.assert_close(
        logits(FAMILY.load(tmp_path / "m", FP32), batch), logits(FAMILY.load(saved, FP32, quantization="none"), batch), atol=1e-4, rtol=1e-4
    )


def test_limits_of_pixels_are_those_of_training(settings: Callable[..., QwenVlConfig], tmp_path: Path) -> None:
    limited = FAMILY.processor(settings(min_pixels=3136, max_pixels=6272))
    limited.save(tmp_path)
    write_manifest(tmp_path)
    large = [(600, 400)]
    assert QwenVlProcessor.load(tmp_path).image_tokens(1, large) == limited.image_tokens(1, large)
    assert limited.image_tokens(1, large) < FAMILY.processor(settings()).image_tokens(1, large)


def test_what_does_not_fit_is_named(trained: Build, processor: QwenVlProcessor, tmp_path: Path, parts: Path) -> None:
    folder = write(trained("lora"), tmp_path / "c", processor)
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"r": 4', '"r": 4 '), encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.json"):
        FAMILY.load(folder, FP32)
    with pytest.raises(UsageError, match=r"is a siglip model; a Qwen2\.5-VL or Qwen3-VL is expected"):
        QWEN_VL.read_config("model.path", str(parts / "siglip"))
    with pytest.raises(UsageError, match="not a Tessera checkpoint but a clip model"):
        family_of(parts / "clip")
    assert family("qwen_vl") is FAMILY
