"""The vision encoder is trained: all of it, its last layers, or LoRA on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.hub.llava_export import to_llava
from model.lora import enable_gradient_checkpointing
from model.param_groups import param_group_of, trainable_param_groups
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel

Make = Callable[..., VisionLanguageModel]
Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]

WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "last layer": {"vision_layers": 1},
    "LoRA": {"vision_lora": LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0)},
}
GROUPS: list[list[ParamGroup]] = [["vision", "connector"], ["vision", "connector", "lora"]]


def with_labels(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**inputs, "labels": inputs["input_ids"]}


def train(model: Any, inputs: dict[str, torch.Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", [-2, "last_hidden_state"])
def test_only_the_weights_below_the_chosen_features_are_trained(way: str, layer: Any, make: Make, settings: Settings, batch: Batch) -> None:
    changes = {**WAYS[way], "vision_feature_layer": layer}
    model = configure_trainable(make(**changes), settings(**changes), ["vision"])
    depth = base_model(model).config.vision_config.num_hidden_layers - (layer == -2)
    names = [name.removeprefix("base_model.model.model.").removeprefix("model.") for name in trainable_param_groups(model)["vision"]]
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in names if ".layers." in name}
    assert layers == ({depth - 1} if way == "last layer" else set(range(depth)))
    assert any("embeddings" in name for name in names) == (way == "all")
    assert any("post_layernorm" in name for name in names) == (way != "LoRA" and layer == "last_hidden_state")
    assert all(".lora_" in name for name in names) == (way == "LoRA")
    model.train()
    model(**with_labels(batch(1))).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_gradients_equal_those_of_the_stock_model(make: Make, settings: Settings, batch: Batch) -> None:
    model = base_model(configure_trainable(make(), settings(), ["vision"]))
    stock: LlavaForConditionalGeneration = to_llava(make()).requires_grad_(True)
    inputs = batch(1, 2)
    model(**with_labels(inputs)).loss.backward()
    stock(**with_labels(inputs)).loss.backward()
    theirs = dict(stock.named_parameters())
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in trained:
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("groups", GROUPS)
def test_what_was_trained_is_saved_loaded_and_merged(
    way: str, groups: list[ParamGroup], make: Make, settings: Settings, batch: Batch, tmp_path: Path
) -> None:
    config, inputs = settings(**WAYS[way]), batch(1, 2)
    model = configure_trainable(make(**WAYS[way]), config, groups, groups)
    before = model(**inputs).logits
    train(model, with_labels(inputs))
    expected = model(**inputs).logits
    assert not torch.allclose(before, expected, atol=1e-3)
    checkpoint.save(model, tmp_path)
    write_manifest(tmp_path)
    for loaded in (checkpoint.load(tmp_path), checkpoint.merge(tmp_path)):
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    resumed = checkpoint.load(tmp_path, LoadOptions(torch.bfloat16), trainable=True)
    trained, again = trainable_param_groups(model), trainable_param_groups(resumed)
    assert trained.keys() == again.keys() == set(groups)
    for group, parameters in trained.items():
        assert parameters.keys() == again[group].keys()
        assert all(torch.equal(parameter, again[group][name]) for name, parameter in parameters.items())


def test_a_later_stage_that_freezes_the_encoder_keeps_what_was_trained(
    make: Make, settings: Settings, batch: Batch, tmp_path: Path
) -> None:
    inputs = batch(1, 2)
    model = configure_trainable(make(), settings(), ["vision", "connector"])
    train(model, with_labels(inputs))
    model = configure_trainable(model, settings(), ["connector", "lora"])
    assert set(trainable_param_groups(model)) == {"connector", "lora"}
    checkpoint.save(model, tmp_path)
    write_manifest(tmp_path)
    torch.testing.assert_close(checkpoint.load(tmp_path)(**inputs).logits, model.eval()(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_ranks_of_vision_and_language_adapters_are_their_own(make: Make, settings: Settings) -> None:
    changes = {"vision_lora": LoraConfig(r=2, lora_alpha=6, lora_dropout=0.0, target_modules=("q_proj",), layers_to_transform=(1,))}
    model = configure_trainable(make(**changes), settings(**changes), ["vision", "lora"])
    ranks = {name: p.shape[0] for name, p in model.named_parameters() if ".lora_A." in name}
    vision = {name: rank for name, rank in ranks.items() if "vision_tower" in name}
    assert len(vision) == 1 and "layers.1.self_attn.q_proj" in next(iter(vision))
    assert set(vision.values()) == {2} and {rank for name, rank in ranks.items() if name not in vision} == {4}
    scales = {name: m.scaling["default"] for name, m in model.named_modules() if isinstance(getattr(m, "scaling", None), dict)}
    assert {scale for name, scale in scales.items() if "vision_tower" in name} == {3.0}
    assert {param_group_of(name, base_model(model).group_paths) for name in vision} == {"vision"}


def test_adapters_that_differ_in_what_peft_has_once_are_refused(make: Make, settings: Settings) -> None:
    changes = {"vision_lora": LoraConfig(r=2, lora_dropout=0.1)}
    with pytest.raises(UsageError, match=r"model\.vision_lora\.lora_dropout: 0\.1, but model\.lora has 0\.0"):
        configure_trainable(make(**changes), settings(**changes), ["vision", "lora"])


@pytest.mark.parametrize("way", WAYS)
def test_recomputed_layers_give_the_same_gradients(way: str, make: Make, settings: Settings, batch: Batch) -> None:
    gradients = []
    for recomputes in (False, True):
        model = configure_trainable(make(**WAYS[way]), settings(**WAYS[way]), ["vision", "connector"])
        if recomputes:
            enable_gradient_checkpointing(model)
        calls: list[int] = []
        layer = base_model(model).model.vision_tower.encoder.layers[-2]
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        model(**with_labels(batch(1))).loss.backward()
        assert len(calls) == 1 + recomputes
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_a_batch_without_images_gives_every_trained_weight_a_gradient(make: Make, settings: Settings, batch: Batch) -> None:
    model = configure_trainable(make(), settings(), ["vision", "connector"]).train()
    model(**with_labels(batch(0))).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in trainable_param_groups(model)["vision"].values())
