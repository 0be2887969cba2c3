"""Qwen vision-language models train as transformers' own classes with PEFT do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import UsageError
from model.family import Collate
from model.param_groups import param_group_of, trainable_param_groups, unwrapped
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.family import FAMILY
from model.qwen_vl.modeling import GROUP_PATHS
from model.qwen_vl.processor import QwenVlProcessor
from model.stock.stock_family import NOT_MODEL_INPUTS
from tests.model.qwen_vl.conftest import Build

Settings = Callable[..., QwenVlConfig]


def stock_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key == "labels" or key not in NOT_MODEL_INPUTS}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("groups", [("lora",), ("connector", "lora"), ("vision", "connector", "language")])
def test_loss_and_gradients_are_those_of_the_stock_class(trained: Build, batch: dict[str, Any], groups: Any) -> None:
    model = trained(*groups)
    supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    loss = FAMILY.loss(model, batch, supervised)
    loss.backward()
    ours = gradients(model)
    stock = model(**stock_inputs(batch)).loss
    stock.backward()
    theirs = gradients(model)
    torch.testing.assert_close(loss, stock, atol=1e-6, rtol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5)
    assert all(gradient.abs().sum() > 0 for name, gradient in ours.items() if "lora_A" not in name)


def test_the_loss_of_a_batch_is_the_sum_of_that_of_its_samples(
    trained: Build, examples: list[Example], collate: Collate, batch: dict[str, Any]
) -> None:
    """Padding and the images of other samples change nothing."""
    model = trained("lora")
    alone = sum(float(FAMILY.loss(model, collate([example]), 1).detach()) for example in examples)
    assert alone == pytest.approx(float(FAMILY.loss(model, batch, 1).detach()), rel=1e-5)


def test_supervised_tokens_are_the_answers_with_their_end(processor: QwenVlProcessor, batch: dict[str, Any]) -> None:
    kept = batch["labels"][batch["labels"] != IGNORE_INDEX]
    assert processor.tokenizer.decode(kept) == "red<|im_end|>no<|im_end|>2 of them<|im_end|>"


@pytest.mark.parametrize("groups", [("lora",), ("connector",), ("vision",), ("language",), ("connector", "lora")])
def test_only_the_named_groups_change(trained: Build, batch: dict[str, Any], groups: Any) -> None:
    model = trained(*groups)
    assert set(trainable_param_groups(model)) == set(groups)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    FAMILY.loss(model, batch, 5).backward()
    optimizer.step()
    changed = {param_group_of(name, GROUP_PATHS) for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == set(groups)


def test_the_connector_is_everything_that_makes_word_embeddings_of_patches(trained: Build) -> None:
    """Also the mergers of Qwen3-VL's intermediate layers."""
    names = {name for name, p in trained("connector").named_parameters() if p.requires_grad}
    expected = {name for name, _ in trained("lora").get_base_model().named_parameters() if "merger" in name}
    assert names == expected and names


def test_a_batch_is_overfitted(trained: Build, batch: dict[str, Any]) -> None:
    model = trained("connector", "language").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = FAMILY.loss(model, batch, int((batch["labels"] != IGNORE_INDEX).sum()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_a_batch_without_images_gives_every_trained_weight_a_gradient(trained: Build, examples: list[Example], collate: Collate) -> None:
    """As DDP needs it; the gradients of vision encoder and merger are zero."""
    model = trained("vision", "connector", "lora")
    FAMILY.loss(model, collate(examples[1:2]), 2).backward()
    trained_parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained_parameters.values())
    assert all(not p.grad.any() for name, p in trained_parameters.items() if ".visual." in name and p.grad is not None)


def test_four_bit_weights_train_on_a_cpu(trained: Build, batch: dict[str, Any]) -> None:
    model = trained("lora", quantization="nf4")
    kinds = {type(module).__name__ for module in unwrapped(model).model.language_model.modules()}
    assert "Linear4bit" in kinds
    assert not any(type(module).__name__ == "Linear4bit" for module in unwrapped(model).model.visual.modules())
    loss = FAMILY.loss(model, batch, 5)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(gradient.abs().sum() > 0 for name, gradient in gradients(model).items() if "lora_A" in name or "lora_B" in name)


def test_lora_that_the_settings_do_not_have_is_refused(trained: Build) -> None:
    with pytest.raises(UsageError, match=r"lora cannot be trained while model\.lora is null"):
        trained("lora", lora=None)
