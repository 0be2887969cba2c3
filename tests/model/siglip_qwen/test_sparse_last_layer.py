"""The last layer runs at supervised positions only; loss, gradients and logits do not change."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.loading.collators import PackedCollator, PaddedCollator
from model.lora import enable_gradient_checkpointing
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.batch_layout import LayoutCollator, with_layout
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.processor import Processor
from model.siglip_qwen.sparse_last_layer import enable_sparse_last_layer
from tests.model.conftest import Build
from tests.model.kernels.test_fused_lora import with_random_lora_b
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients

COLLATORS: list[Any] = [PaddedCollator(pad_id=0), PackedCollator(pad_id=0, capacity=400, max_length=180)]


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("collate", COLLATORS, ids=["padded", "packed"])
@pytest.mark.parametrize("language", ["qwen3", "qwen2"])
def test_loss_and_gradients_do_not_change(
    make: Build, settings: Any, processor: Processor, parts: Path, qwen2: Path, language: str, collate: Any, with_positions: bool
) -> None:
    folder = {"qwen3": parts / "qwen3", "qwen2": qwen2}[language]
    batch = (
        LayoutCollator(collate, processor.image_token_id)(examples(processor))
        if with_positions
        else with_layout(collate(examples(processor)))
    )
    model = with_random_lora_b(configure_trainable(make(language=str(folder)), settings(), ["connector", "lora"])).train()
    expected = loss_and_gradients(model, batch)
    FAMILY.fuse(model)
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, atol=1e-5, rtol=1e-4)
    enable_gradient_checkpointing(model)
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("collate", COLLATORS, ids=["padded", "packed"])
def test_the_last_mlp_runs_at_supervised_positions_only(make: Build, processor: Processor, collate: Any) -> None:
    model, rows = make().train(), list[int]()
    batch = with_layout(collate(examples(processor)))
    layers = model.model.language_model.layers
    for layer in (layers[0], layers[-1]):
        layer.mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].numel() // args[0].shape[-1]))
    assert enable_sparse_last_layer(model.model.language_model)
    model(**batch)
    assert rows == [batch["input_ids"].numel(), int((batch["labels"] != -100).sum())]
    rows.clear()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    assert model(**inputs).logits.shape[:2] == batch["input_ids"].shape
    assert rows == [batch["input_ids"].numel()] * 2


def test_logits_without_labels_do_not_change(make: Build, batch: Callable[..., dict[str, torch.Tensor]]) -> None:
    model, inputs = make(), batch(1, 2, pad="left")
    expected = model(**inputs).logits
    FAMILY.fuse(model)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_right_padding_needs_no_attention_mask(make: Build, processor: Processor) -> None:
    model, batch = base_model(make()).train(), with_layout(PaddedCollator(pad_id=0)(examples(processor)))
    masks: list[Any] = []
    attention = model.model.language_model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True)
    unmasked = loss_and_gradients(model.requires_grad_(True), batch)
    batch["layout"] = dataclasses.replace(batch["layout"], padded_right=False)
    masked = loss_and_gradients(model, batch)
    assert masks[0] is None and masks[1] is not None
    torch.testing.assert_close(unmasked, masked, atol=1e-5, rtol=1e-4)
