"""Gradients of both sides are compared weight by weight; an error of 0.1 % in a single one is detected."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.full_size_models import build_ours
from benchmarks.training.gradient_parity import GradientParity, compare
from benchmarks.training.trained_models import Setup, copy_adapters, our_side, stock_side
from dataset.loading.collators import PaddedCollator
from model.kernels import fused_lora
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from training.config import StageConfig, TrainConfig

CPU = torch.device("cpu")
MODEL = SiglipQwenConfig(max_length=512, lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1))


@pytest.fixture(scope="module")
def compare_sides() -> Callable[..., GradientParity]:
    """Function that compares two sides, given by name, on six samples; keywords override train.*."""

    def compare_sides(ours: str = "ours", against: str = "stock", **train: Any) -> GradientParity:
        stage = StageConfig(name="tune", train=("connector", "lora"))
        setup = Setup.of("tiny", MODEL, TrainConfig(stages=(stage,), per_device_train_batch_size=6, **train), 6, CPU)
        base = build_ours("tiny", MODEL, setup.processor, dtype=torch.float32, device=CPU)
        plain = stock_side(setup, base)
        sides = {"stock": plain, "stock in fp32": dataclasses.replace(plain, precision="fp32"), "ours": our_side(setup, base)[0]}
        copy_adapters(sides["ours"], plain)
        model = sides[ours].model
        before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
        padded = PaddedCollator(int(setup.processor.tokenizer.pad_token_id))(setup.examples)
        batch = setup.collate(setup.examples) if ours == "ours" else padded
        parity = compare(sides[ours], sides[against], batch, padded)
        after = dict(model.named_parameters())
        assert all(torch.equal(weight, after[name]) and after[name].grad is None for name, weight in before.items())
        probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert probabilities == {0.1}, "dropout is restored"
        return parity

    return compare_sides


PACKED = {"batching": "packed", "packing_length": 1024}


@pytest.mark.parametrize("train", [{}, PACKED, {**PACKED, "logits_memory_gib": 1e-4}], ids=["padded", "packed", "chunked"])
def test_in_fp32_every_gradient_equals_that_of_stock(compare_sides: Callable[..., GradientParity], train: dict[str, Any]) -> None:
    parity = compare_sides(**train)
    assert parity.loss_off < 1e-5
    assert parity.gradients_off <= parity.worst_off < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, pytest.param(PACKED, marks=pytest.mark.slow)], ids=["padded", "packed"])
def test_in_bf16_gradients_are_equal_within_rounding_noise(compare_sides: Callable[..., GradientParity], train: dict[str, Any]) -> None:
    parity = compare_sides(precision="bf16", **train)
    assert parity.loss_off < 2e-2
    assert 1e-5 < parity.gradients_off < 2e-2
    # Small gradients have more noise; ours are as close to fp32 as those of stock.
    ours = compare_sides(precision="bf16", against="stock in fp32", **train)
    stock = compare_sides(precision="bf16", ours="stock", against="stock in fp32", **train)
    assert ours.gradients_off < 1.2 * stock.gradients_off
    assert parity.worst_off < 1.5 * stock.worst_off and ours.worst_off < 1.2 * stock.worst_off


def test_an_adapter_with_a_slightly_wrong_gradient_is_named(
    compare_sides: Callable[..., GradientParity], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fused_lora._backward

    def wrong_backward(*arguments: Any) -> Any:
        grad_x, grad_dropped, grad_a, grad_b = original(*arguments)
        return grad_x, grad_dropped, 1.001 * grad_a, grad_b

    monkeypatch.setattr(fused_lora, "_backward", wrong_backward)
    parity = compare_sides()
    assert parity.worst_off == pytest.approx(1e-3, rel=0.05)
    assert ".lora_A." in parity.worst
    assert parity.worst in str(parity)
    assert parity.loss_off < 1e-5, "the loss alone does not show the error"


def test_differences_are_relative_to_stock() -> None:
    assert GradientParity(1.02, 1.0, 0.0, 0.0, "").loss_off == pytest.approx(0.02)
    assert np.isclose(GradientParity(2.0, 4.0, 0.0, 0.0, "").loss_off, 0.5)
