"""Positions computed on the host give the same results as those computed by the model, without synchronising with the device."""

import dataclasses
from typing import Any

import pytest
import torch

from dataset.loading.collators import PackedCollator, PaddedCollator
from model.kernels import varlen_attention
from model.lora import enable_gradient_checkpointing
from model.param_groups import set_trainable
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.batch_layout import LayoutCollator, find_image_tokens, find_supervised_positions, with_layout
from model.siglip_qwen.modeling import ImageTokenMismatchError, VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients

COLLATORS: list[Any] = [PaddedCollator(pad_id=0), PackedCollator(pad_id=0, capacity=400, max_length=180)]


def test_positions_are_indices_in_the_flattened_batch() -> None:
    assert find_image_tokens(torch.tensor([[7, 1, 7], [1, 7, 1]]), 7).tolist() == [0, 2, 4]
    # The token after a position is supervised; the first token of a row is predicted by none.
    assert find_supervised_positions(torch.tensor([[5, -100, 5], [5, 5, -100]])).tolist() == [1, 3]


@pytest.mark.parametrize("collate", COLLATORS, ids=["padded", "packed"])
def test_loss_and_gradients_are_the_same_with_given_positions(make: Build, processor: Processor, collate: Any) -> None:
    model, samples = make(), examples(processor)
    set_trainable(model, ["connector", "language"])
    expected = loss_and_gradients(model, with_layout(collate(samples)))
    given = loss_and_gradients(model, LayoutCollator(collate, processor.image_token_id)(samples))
    torch.testing.assert_close(given, expected, atol=0, rtol=0)


def test_a_mismatch_of_images_and_given_positions_names_the_sample(model: VisionLanguageModel, processor: Processor) -> None:
    row = LayoutCollator(COLLATORS[1], processor.image_token_id)(examples(processor))
    with pytest.raises(ImageTokenMismatchError, match="sample s3: 36 image tokens"):
        model(**{**row, "pixel_values": row["pixel_values"][:3]})


@pytest.mark.parametrize("memory", [None, 1e-6], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_never_synchronises_with_the_device(
    make: Build, settings: Any, processor: Processor, monkeypatch: pytest.MonkeyPatch, memory: float | None, checkpointing: bool
) -> None:
    # A tensor on the meta device has no values: `.item()` and `nonzero`, which would synchronise, raise an exception.
    monkeypatch.setattr(varlen_attention, "can_use_varlen", lambda _: True)
    monkeypatch.setattr(
        varlen_attention, "varlen_attn", lambda q, k, v, *_, **__: q + (k + v).repeat_interleave(q.shape[1] // k.shape[1], 1)
    )
    row = LayoutCollator(COLLATORS[1], processor.image_token_id)(examples(processor))
    row = {key: value.to("meta") for key, value in row.items()}
    model = configure_trainable(make(), settings(), ["connector", "lora"]).to("meta").train()
    if checkpointing:
        enable_gradient_checkpointing(model)
    model.get_base_model().logits_memory_gib = memory
    model(**row, num_items_in_batch=torch.tensor(9)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(**{**row, "layout": dataclasses.replace(row["layout"], supervised_positions=None)})
