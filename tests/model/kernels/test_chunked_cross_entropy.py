"""Chunked cross entropy equals the unchunked one and limits memory."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dataset.loading.collators import PackedCollator
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT, chunked_cross_entropy, positions_per_chunk
from model.param_groups import set_trainable
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients


def test_a_chunk_has_as_many_positions_as_fit_into_memory_and_at_least_one() -> None:
    assert positions_per_chunk(1.0, 2**30 // BYTES_PER_LOGIT // 8) == 8
    assert positions_per_chunk(1e-9, 151_936) == 1


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 20, 21])
@pytest.mark.parametrize("positions", [0, 1, 20])
def test_chunked_loss_and_gradients_equal_the_unchunked_ones(chunk_size: int | None, positions: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False)
    hidden, targets = torch.randn(positions, 16, requires_grad=True), torch.randint(50, (positions,))
    expected = functional.cross_entropy(head(hidden), targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected, [hidden, head.weight])
    loss = chunked_cross_entropy(head, hidden, targets, chunk_size)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, [hidden, head.weight]), expected_gradients, atol=1e-6, rtol=1e-6)


def test_logits_are_computed_chunk_by_chunk_and_not_saved() -> None:
    head, rows, saved_shapes = nn.Linear(16, 50, bias=False), [], []
    head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    hidden, targets = torch.randn(10, 16, requires_grad=True), torch.zeros(10, dtype=torch.long)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved_shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = chunked_cross_entropy(head, hidden, targets, 4)
    assert rows == [4, 3, 3]
    assert not [shape for shape in saved_shapes if 50 in shape]
    loss.backward()
    assert rows == [4, 3, 3, 3, 3, 4], "recomputed in the backward pass"


def test_a_memory_limit_for_logits_does_not_change_loss_and_gradients(make: Build, processor: Processor) -> None:
    model, row = make(), PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor))
    set_trainable(model, ["connector", "language"])
    expected = loss_and_gradients(model, row)
    calls: list[Any] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    model.logits_memory_gib = 5 * BYTES_PER_LOGIT * model.config.text_config.vocab_size / 2**30
    torch.testing.assert_close(loss_and_gradients(model, row), expected, atol=1e-5, rtol=0)
    assert len(calls) > 2
