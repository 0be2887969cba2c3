"""Trainable parameter groups, LoRA, QLoRA, DoRA and activation checkpointing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from errors import UsageError
from model.family_config import ParamGroup
from model.lora import enable_gradient_checkpointing
from model.param_groups import param_group_of, trainable_param_groups
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import loss_and_gradients, with_labels

Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def train(model: nn.Module, inputs: dict[str, torch.Tensor], steps: int = 8, bf16: bool = False) -> list[float]:
    """Take optimizer steps on one batch; the loss before each."""
    optimizer = torch.optim.AdamW([p for group in trainable_param_groups(model).values() for p in group.values()], lr=2e-3)
    model.train()
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(make: Build, settings: Settings) -> None:
    model = configure_trainable(make(), settings(), ["connector", "lora"])
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    layers = {f"base_model.model.model.language_model.layers.{i}" for i in range(5)}
    assert {name.rpartition(".")[2] for name in adapted} == LINEAR
    assert {name.rsplit(".", 2)[0] for name in adapted} == layers
    assert len(adapted) == 5 * 7


def test_lora_finds_the_layers_of_a_qwen2(make: Build, settings: Settings, qwen2: Path) -> None:
    model = configure_trainable(make(language=str(qwen2)), settings(), ["lora"])
    assert sum(".lora_A" in name for name, _ in model.named_parameters()) == 3 * 7


@pytest.mark.parametrize("train_groups", [["connector"], ["connector", "lora"], ["lora"], ["language"], ["connector", "language"]])
def test_only_the_given_groups_are_trainable_and_in_fp32(make: Build, settings: Settings, train_groups: list[ParamGroup]) -> None:
    model = configure_trainable(make().to(torch.bfloat16), settings(), train_groups)
    groups = trainable_param_groups(model)
    assert set(groups) == set(train_groups)
    assert {parameter.dtype for group in groups.values() for parameter in group.values()} == {torch.float32}
    assert {p.dtype for p in base_model(model).model.vision_tower.parameters()} == {torch.bfloat16}


def test_a_tied_lm_head_stays_tied_when_the_language_model_is_trained(make: Build, settings: Settings) -> None:
    model = base_model(configure_trainable(make().to(torch.bfloat16), settings(), ["language"]))
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("train_groups", [["connector"], ["connector", "lora"]])
def test_frozen_weights_do_not_change(
    make: Build, settings: Settings, batch: Batch, quantization: str, train_groups: list[ParamGroup]
) -> None:
    model = configure_trainable(make(quantization=quantization), settings(quantization=quantization), train_groups)
    trained = {id(p) for group in trainable_param_groups(model).values() for p in group.values()}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in trained}
    losses = train(model, with_labels(batch(1, 2)))
    assert losses[-1] < losses[0] - 0.3
    after = dict(model.named_parameters())
    assert len(before) > 100
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_new_lora_adapter_does_not_change_the_logits(make: Build, settings: Settings, batch: Batch) -> None:
    inputs = batch(1, 2)
    torch.testing.assert_close(configure_trainable(make(), settings(), ["connector", "lora"])(**inputs).logits, make()(**inputs).logits)


def test_qlora_gradients_are_correct_after_an_evaluation_pass(make: Build, settings: Settings, batch: Batch) -> None:
    model = configure_trainable(make(quantization="nf4"), settings(quantization="nf4"), ["connector", "lora"])
    inputs = with_labels(batch(1, 2))
    train(model, inputs, steps=2)
    model.train()
    before = loss_and_gradients(model, inputs)
    model.eval()
    with torch.no_grad():
        model(**batch(1))
    model.train()
    torch.testing.assert_close(loss_and_gradients(model, inputs), before, atol=0, rtol=0)


def test_qlora_under_bf16_autocast_learns(make: Build, settings: Settings, batch: Batch) -> None:
    model = configure_trainable(make(quantization="nf4"), settings(quantization="nf4"), ["connector", "lora"])
    losses = train(model, with_labels(batch(1, 2)), bf16=True)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_dora_trains_a_magnitude_vector_for_every_linear_layer(make: Build, settings: Settings, batch: Batch, quantization: str) -> None:
    config = settings(quantization=quantization, lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True))
    model = configure_trainable(make(quantization=quantization), config, ["lora"])
    assert sum("lora_magnitude_vector" in name and p.requires_grad for name, p in model.named_parameters()) == 35
    losses = train(model, with_labels(batch(1, 2)))
    assert losses[-1] < losses[0] - 0.3


def test_a_later_stage_keeps_the_lora_weights_and_trains_only_its_groups(make: Build, settings: Settings, batch: Batch) -> None:
    inputs = with_labels(batch(1, 2))
    model = configure_trainable(make(), settings(), ["connector"])
    train(model, inputs)
    connector = {name: p.detach().clone() for name, p in base_model(model).model.multi_modal_projector.named_parameters()}
    model = configure_trainable(model, settings(), ["connector", "lora"])
    copied = {name: p for name, p in model.named_parameters() if param_group_of(name, base_model(model).group_paths) == "connector"}
    assert all(torch.equal(connector[name.partition("default.")[2]], p) for name, p in copied.items())
    train(model, inputs)
    lora_weights = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}
    reconfigured = configure_trainable(model, settings(), ["connector"])
    assert reconfigured is model
    assert set(trainable_param_groups(model)) == {"connector"}
    train(model, inputs)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in lora_weights.items())


def test_lora_dropout_is_active_in_training_mode_only(make: Build, settings: Settings, batch: Batch) -> None:
    model = configure_trainable(make(), settings(lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5)), ["connector", "lora"])
    inputs = with_labels(batch(1, 2))
    train(model, inputs, steps=2)
    assert model(**inputs).loss == model(**inputs).loss
    model.train()
    assert model(**inputs).loss != model(**inputs).loss


@pytest.mark.parametrize("train_groups", [["connector"], ["connector", "lora"], ["connector", "language"]])
def test_gradient_checkpointing_gives_the_same_gradients(
    make: Build, settings: Settings, batch: Batch, train_groups: list[ParamGroup]
) -> None:
    inputs = with_labels(batch(1, 2))
    model = configure_trainable(make(), settings(), train_groups).train()
    expected = loss_and_gradients(model, inputs)
    enable_gradient_checkpointing(model)
    calls: list[int] = []
    base_model(model).model.language_model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(loss_and_gradients(model, inputs), expected, atol=1e-6, rtol=0)
    assert len(calls) == 2, "the layer runs once more in the backward pass"


@pytest.mark.parametrize(
    ("layers", "checkpointed"), [(0, []), (1, [4]), (2, [2, 4]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])]
)
def test_checkpointed_layers_are_evenly_spread_and_give_the_same_gradients(
    make: Build, settings: Settings, batch: Batch, layers: int | None, checkpointed: list[int]
) -> None:
    inputs = with_labels(batch(1, 2))
    model = configure_trainable(make(), settings(), ["connector", "lora"]).train()
    expected = loss_and_gradients(model, inputs)
    enable_gradient_checkpointing(model, layers)
    calls: list[int] = []
    for i, layer in enumerate(base_model(model).model.language_model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, i=i: calls.append(i))
    torch.testing.assert_close(loss_and_gradients(model, inputs), expected, atol=0, rtol=0)
    assert sorted(i for i in range(5) if calls.count(i) == 2) == checkpointed


def test_a_batch_without_images_trains_with_lora(make: Build, settings: Settings, batch: Batch) -> None:
    model = configure_trainable(make(), settings(), ["connector", "lora"]).train()
    model(**with_labels(batch(0))).loss.backward()
    assert all(p.grad is not None for group in trainable_param_groups(model).values() for p in group.values())


def test_generation_works_with_lora(make: Build, settings: Settings, batch: Batch) -> None:
    inputs = batch(2, 1, pad="left")
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    expected = make().generate(**inputs, **options)
    assert torch.equal(configure_trainable(make(), settings(), ["connector", "lora"]).generate(**inputs, **options), expected)


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        ({"lora": None}, ["lora"], "train.stages: lora cannot be trained while model.lora is null"),
        ({"quantization": "nf4"}, ["language"], "train.stages: language cannot be trained while model.quantization is nf4"),
        ({}, ["lora", "language"], "train.stages: language and lora cannot both be trained"),
    ],
)
def test_groups_that_contradict_the_settings_are_an_error(
    make: Build, settings: Settings, changes: dict, groups: list[ParamGroup], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        configure_trainable(make(), settings(**changes), groups)


def test_language_after_lora_and_lora_after_language_are_errors(make: Build, settings: Settings) -> None:
    with pytest.raises(UsageError, match="language and lora cannot both"):
        configure_trainable(configure_trainable(make(), settings(), ["lora"]), settings(), ["language"])
    with pytest.raises(UsageError, match="language and lora cannot both"):
        configure_trainable(configure_trainable(make(), settings(), ["language"]), settings(), ["lora"])


def test_a_model_with_lora_is_a_peft_model_around_the_original(make: Build, settings: Settings) -> None:
    model = make()
    wrapped = configure_trainable(model, settings(), ["lora"])
    assert isinstance(wrapped, PeftModel)
    assert base_model(wrapped) is model is base_model(model)
