"""Compiled layers give the same results, in few graphs."""

import dataclasses
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from dataset.loading.collators import PackedCollator
from model.kernels.compile import compile_layers, compile_unsupported_reason, eager_mode
from model.lora import enable_gradient_checkpointing
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.batch_layout import find_supervised_positions, with_layout
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.kernels.test_fused_lora import with_random_lora_b
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients_without_graph_breaks(make: Build, settings: Any, processor: Processor) -> None:
    assert compile_unsupported_reason(torch.device("cpu")) is None, "the tests need a C++ compiler"
    row = with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor)))
    model = with_random_lora_b(configure_trainable(make(), settings(), ["connector", "lora"])).train()
    expected = loss_and_gradients(model, row)
    names = list(model.state_dict())
    FAMILY.fuse(model)
    enable_gradient_checkpointing(model, 2)
    compile_layers(base_model(model).model)
    torch._dynamo.reset()
    counters.clear()
    compiled = loss_and_gradients(model, row)
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == names
    # One graph for the layers of the vision encoder, one for the last layer of the language model, and one each for its other layers with
    # and without activation checkpointing (older torch shares one).
    graphs = counters["stats"]["unique_graphs"]
    assert 3 <= graphs <= 4 and not counters["graph_break"]
    fewer_positions = find_supervised_positions(row["labels"])[:-3]
    model(**{**row, "layout": dataclasses.replace(row["layout"], supervised_positions=fewer_positions)}).loss.backward()
    assert counters["stats"]["unique_graphs"] == graphs, "the number of supervised positions must be dynamic"
    shorter = with_layout(PackedCollator(pad_id=0, capacity=390, max_length=180)(examples(processor)))
    with eager_mode(model):
        loss = model(**shorter).loss
    torch.testing.assert_close(loss.detach(), expected[0], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs, "eager mode must not compile another shape"


def test_compile_needs_triton_on_cuda_and_is_not_used_on_other_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "Triton" in str(compile_unsupported_reason(torch.device("cuda")))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert compile_unsupported_reason(torch.device("cuda")) is None
    assert "mps" in str(compile_unsupported_reason(torch.device("mps")))
