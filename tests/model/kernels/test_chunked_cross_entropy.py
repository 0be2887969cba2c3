"""Chunked cross entropy equals the unchunked one and limits memory."""

import pytest
import torch
from torch.nn import functional

from dataset.loading.collators import PackedCollator
from model.kernels import chunked_cross_entropy as kernel
from model.kernels.chunked_cross_entropy import BYTES_PER_LOGIT, LanguageModelHead, chunked_cross_entropy, positions_per_chunk
from model.param_groups import set_trainable
from model.siglip_qwen.batch_layout import with_layout
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients


@pytest.fixture
def chunk_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of each chunk whose logits were computed so far."""
    rows, compute = [], kernel._cross_entropy_sum

    def record(weight: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return compute(weight, hidden, targets)

    monkeypatch.setattr(kernel, "_cross_entropy_sum", record)
    return rows


def test_a_chunk_has_as_many_positions_as_fit_into_memory_and_at_least_one() -> None:
    assert positions_per_chunk(1.0, 2**30 // BYTES_PER_LOGIT // 8) == 8
    assert positions_per_chunk(1e-9, 151_936) == 1


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 20, 21])
@pytest.mark.parametrize("positions", [0, 1, 20])
def test_chunked_loss_and_gradients_equal_the_unchunked_ones(chunk_size: int | None, positions: int) -> None:
    torch.manual_seed(0)
    head = LanguageModelHead(16, 50)
    hidden, targets = torch.randn(positions, 16, requires_grad=True), torch.randint(50, (positions,))
    expected = functional.cross_entropy(head(hidden), targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected, [hidden, head.weight])
    loss = chunked_cross_entropy(head.weight, hidden, targets, chunk_size)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, [hidden, head.weight]), expected_gradients, atol=1e-6, rtol=1e-6)


def test_logits_are_computed_chunk_by_chunk_and_not_saved(chunk_sizes: list[int]) -> None:
    head, saved_shapes = LanguageModelHead(16, 50), []
    hidden, targets = torch.randn(10, 16, requires_grad=True), torch.zeros(10, dtype=torch.long)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is not head.weight:
            saved_shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = head(hidden, targets, 4)
    assert chunk_sizes == [4, 3, 3]
    assert not [shape for shape in saved_shapes if 50 in shape]
    loss.backward()
    assert chunk_sizes == [4, 3, 3, 3, 3, 4], "recomputed in the backward pass"


def test_a_memory_limit_for_logits_does_not_change_loss_and_gradients(make: Build, processor: Processor, chunk_sizes: list[int]) -> None:
    model, row = make(), with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor)))
    set_trainable(model, ["connector", "language"])
    expected = loss_and_gradients(model, row)
    assert len(chunk_sizes) == 1
    head_calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: head_calls.append(1))
    model.logits_memory_gib = 5 * BYTES_PER_LOGIT * model.config.text_config.vocab_size / 2**30
    torch.testing.assert_close(loss_and_gradients(model, row), expected, atol=1e-5, rtol=0)
    assert len(chunk_sizes) > 3
    assert len(head_calls) == 1, "all ranks call a sharded head equally often"
