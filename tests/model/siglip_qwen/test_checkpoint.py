"""Saving, loading and merging checkpoints, and finding the latest complete one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from errors import UsageError
from model.checkpoint_manifest import latest_checkpoint, write_manifest
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.param_groups import trainable_param_groups
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import ConnectorConfig, LoraConfig, SiglipQwenConfig
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import with_labels
from tests.model.test_lora import train

Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]
Trained = Callable[..., nn.Module]

STAGES: list[list[ParamGroup]] = [["connector"], ["connector", "lora"], ["connector", "language"]]


@pytest.fixture
def trained(make: Build, settings: Settings, batch: Batch) -> Trained:
    """Returns a model after three optimizer steps."""

    def run(groups: list[ParamGroup], **changes: object) -> nn.Module:
        model = configure_trainable(make(**changes), settings(**changes), groups)
        train(model, with_labels(batch(1, 2)), steps=3)
        return model

    return run


def save(model: nn.Module, folder: Path) -> None:
    """Write a complete checkpoint."""
    checkpoint.save(model, folder)
    write_manifest(folder)


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [B, T, V] without autograd."""
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.parametrize("groups", STAGES)
def test_a_saved_a_loaded_and_a_merged_model_give_the_same_logits(
    trained: Trained, make: Build, batch: Batch, tmp_path: Path, groups: list[ParamGroup]
) -> None:
    model, inputs = trained(groups), batch(1, 2)
    expected = logits(model, inputs)
    assert (expected - logits(make(), inputs)).abs().max() > 0.1, "training must have changed the model"
    save(model, tmp_path / "c")
    loaded = checkpoint.load(tmp_path / "c")
    torch.testing.assert_close(logits(loaded, inputs), expected, atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in loaded.named_parameters()), "adapters are merged into a model that is not quantised"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    merged = checkpoint.merge(tmp_path / "c")
    torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_in_16_bits_adapters_are_not_merged_which_would_round_small_updates_away(trained: Trained, tmp_path: Path) -> None:
    save(trained(["connector", "lora"]), tmp_path)
    loaded = checkpoint.load(tmp_path, LoadOptions(torch.bfloat16))
    assert any("lora" in name for name, _ in loaded.named_parameters())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_model_is_quantised_the_same_way_again(trained: Trained, batch: Batch, tmp_path: Path, quantization: str) -> None:
    model, inputs = trained(["connector", "lora"], quantization=quantization), batch(1, 2)
    save(model, tmp_path)
    assert torch.equal(logits(checkpoint.load(tmp_path), inputs), logits(model, inputs))


def test_dora_is_loaded_and_merged(trained: Trained, batch: Batch, tmp_path: Path) -> None:
    model, inputs = trained(["lora"], lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True)), batch(1)
    save(model, tmp_path)
    assert torch.equal(logits(checkpoint.load(tmp_path), inputs), logits(model, inputs))
    torch.testing.assert_close(logits(checkpoint.merge(tmp_path), inputs), logits(model, inputs), atol=1e-5, rtol=0)


def test_merging_after_qlora_uses_the_unquantised_base_model(trained: Trained, batch: Batch, tmp_path: Path) -> None:
    save(trained(["connector", "lora"], quantization="nf4"), tmp_path)
    exact = checkpoint.load(tmp_path, quantization="none")
    torch.testing.assert_close(logits(checkpoint.merge(tmp_path), batch(1)), logits(exact, batch(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", STAGES)
def test_one_file_contains_lora_and_connector_and_no_base_weights(trained: Trained, tmp_path: Path, groups: list[ParamGroup]) -> None:
    save(trained(groups), tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    connector = {f"base_model.model.model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert connector <= keys
    assert all(".lora_" in key for key in keys - connector)
    assert any(".lora_" in key for key in keys) == ("lora" in groups)
    assert (tmp_path / "adapter_config.json").exists() == ("lora" in groups)
    assert (tmp_path / "language" / "model.safetensors").exists() == ("language" in groups)


def test_the_config_contains_base_models_and_settings(make: Build, settings: Settings, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"connector": ConnectorConfig(kind="mlp_pool", pool=2), "system_prompt": "Antworte kurz."}
    config = settings(**changes)
    save(configure_trainable(make(**changes), config, ["connector"]), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["settings"]["vision"] == config.vision
    assert written["settings"]["language"] == config.language
    assert checkpoint.settings(tmp_path) == config
    assert base_model(checkpoint.load(tmp_path)).config.connector_config.pool == 2


@pytest.mark.parametrize("groups", STAGES)
def test_loading_to_resume_makes_the_trained_groups_trainable_in_fp32(
    trained: Trained, batch: Batch, tmp_path: Path, groups: list[ParamGroup]
) -> None:
    save(trained(groups), tmp_path)
    model = checkpoint.load(tmp_path, LoadOptions(torch.bfloat16), trainable=True)
    trainable = trainable_param_groups(model)
    assert set(trainable) == set(groups)
    assert {p.dtype for group in trainable.values() for p in group.values()} == {torch.float32}
    assert train(model, with_labels(batch(1, 2)), steps=2)


@pytest.mark.parametrize("groups", STAGES)
def test_loading_to_resume_rounds_no_trained_weight(trained: Trained, tmp_path: Path, groups: list[ParamGroup]) -> None:
    model = trained(groups)
    save(model, tmp_path)
    loaded = checkpoint.load(tmp_path, LoadOptions(torch.bfloat16), trainable=True)
    for group, parameters in trainable_param_groups(model).items():
        loaded_parameters = trainable_param_groups(loaded)[group]
        assert parameters.keys() == loaded_parameters.keys()
        for name, parameter in parameters.items():
            assert torch.equal(parameter, loaded_parameters[name])


def test_a_given_state_dict_is_saved_instead_of_the_models_own(trained: Trained, tmp_path: Path) -> None:
    for groups in STAGES:
        model = trained(groups)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        checkpoint.save(model, tmp_path / "own")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        checkpoint.save(model, tmp_path / "given", state)
        for path in (tmp_path / "own").rglob("*.safetensors"):
            other = load_file(tmp_path / "given" / path.relative_to(tmp_path / "own"))
            assert all(torch.equal(value, other[key]) for key, value in load_file(path).items())
        shutil.rmtree(tmp_path / "own")
        shutil.rmtree(tmp_path / "given")


def test_weights_of_another_shape_or_number_are_an_error(trained: Trained, tmp_path: Path) -> None:
    save(trained(["connector", "lora"]), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key: value for key, value in tensors.items() if ".lora_" not in key}, tmp_path / "adapter_model.safetensors")
    write_manifest(tmp_path)
    with pytest.raises(UsageError, match=r"70 weights are missing, unexpected or of another shape, such as .*lora_"):
        checkpoint.load(tmp_path)
    key = next(key for key in tensors if key.endswith("linear_1.bias"))
    save_file({**tensors, key: torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    write_manifest(tmp_path)
    with pytest.raises(UsageError, match=rf"1 weights are missing.*{key.removeprefix('base_model.model.')}"):
        checkpoint.load(tmp_path)


def test_a_folder_that_is_not_a_checkpoint_is_an_error(tmp_path: Path, parts: Path) -> None:
    with pytest.raises(UsageError, match="not a checkpoint"):
        checkpoint.load(tmp_path)
    with pytest.raises(UsageError, match="not a Tessera checkpoint but a qwen3 model"):
        checkpoint.load(parts / "qwen3")


def test_a_missing_base_model_is_an_error_naming_its_key(trained: Trained, tmp_path: Path) -> None:
    save(trained(["connector"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["settings"]["language"] = "/gone/qwen"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_manifest(tmp_path)
    with pytest.raises(UsageError, match=r"model.language: cannot load /gone/qwen"):
        checkpoint.load(tmp_path)


def test_settings_of_another_version_are_an_error(trained: Trained, tmp_path: Path) -> None:
    save(trained(["connector"]), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["settings"]["resolution"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_manifest(tmp_path)
    with pytest.raises(UsageError, match=r"settings\.resolution: unexpected keyword argument"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("quantization", ["as_trained", "none", "nf4"])
def test_a_merged_model_is_loaded_directly(trained: Trained, batch: Batch, tmp_path: Path, quantization: Any) -> None:
    save(trained(["connector", "lora"]), tmp_path / "c")
    merged = checkpoint.merge(tmp_path / "c")
    merged.save_pretrained(tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m", quantization=quantization)
    difference = (logits(loaded, batch(1)) - logits(merged, batch(1))).abs().max()
    assert not isinstance(loaded, PeftModel)
    assert loaded.generation_config.eos_token_id == merged.generation_config.eos_token_id
    assert difference == 0 if quantization != "nf4" else 0 < difference < 1


def write_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    """Write small files in place of a checkpoint."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"x" * step)
    (path / "trainer").mkdir()
    (path / "trainer" / "state").write_text("s")
    if complete:
        write_manifest(path)
    return path


def test_the_latest_checkpoint_is_the_complete_one_with_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize("damage", ["no manifest", "missing file", "truncated file", "invalid manifest"])
def test_an_incomplete_checkpoint_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    write_checkpoint(tmp_path, 10)
    broken = write_checkpoint(tmp_path, 20, complete=damage != "no manifest")
    if damage == "missing file":
        (broken / "adapter_model.safetensors").unlink()
    if damage == "truncated file":
        (broken / "adapter_model.safetensors").write_bytes(b"x")
    if damage == "invalid manifest":
        (broken / "whole.json").write_text('{"a"')
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"
    assert "skipping" in caplog.text
    assert "checkpoint-20" in caplog.text


def test_the_trainer_state_may_be_missing_where_nothing_is_resumed(tmp_path: Path) -> None:
    shutil.rmtree(write_checkpoint(tmp_path, 10) / "trainer")
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_folder_without_a_complete_checkpoint_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, complete=False)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="no complete checkpoint"):
            latest_checkpoint(folder)
