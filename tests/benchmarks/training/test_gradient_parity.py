"""Gradients of both paths are compared weight by weight; an error of a few per cent in one of them is found."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.full_size_models import build_ours
from benchmarks.training.gradient_parity import GradientParity, compare
from benchmarks.training.train_step import Setup, copy_adapters, our_side, stock_side
from dataset.loading.collators import PaddedCollator
from model.kernels import fused_lora
from model.siglip_qwen.config import LoraConfig, ModelConfig
from training.config import StageConfig, TrainConfig

CPU = torch.device("cpu")
MODEL = ModelConfig(max_length=512, lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1))


@pytest.fixture(scope="module")
def compared() -> Callable[..., GradientParity]:
    """Compares both paths on six samples, or others that are named; keywords override train.*."""

    def compared(ours: str = "ours", against: str = "stock", **train: Any) -> GradientParity:
        stage = StageConfig(name="tune", train=("connector", "lora"))
        setup = Setup.of("tiny", MODEL, TrainConfig(stages=(stage,), per_device_train_batch_size=6, **train), 6, CPU)
        base = build_ours("tiny", MODEL, setup.processor, dtype=torch.float32, device=CPU)
        plain = stock_side(setup, base)
        sides = {"stock": plain, "stock in fp32": dataclasses.replace(plain, bf16=False), "ours": our_side(setup, base)[0]}
        copy_adapters(sides["ours"], plain)
        model = sides[ours].model
        before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
        padded = PaddedCollator(int(setup.processor.tokenizer.pad_token_id))(setup.examples)
        batch = setup.batching.collator(setup.processor)(setup.examples) if ours == "ours" else padded
        found = compare(sides[ours], sides[against], batch, padded)
        after = dict(model.named_parameters())
        assert all(torch.equal(weight, after[name]) and after[name].grad is None for name, weight in before.items())
        shares = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert shares == {0.1}, "dropout is back"
        return found

    return compared


PACKED = {"batching": "packed", "tokens_per_row": 1024}


@pytest.mark.parametrize("train", [{}, PACKED, {**PACKED, "logits_memory_gib": 1e-4}], ids=["padded", "packed", "chunked"])
def test_in_fp32_every_gradient_is_that_of_the_plain_path(compared: Callable[..., GradientParity], train: dict[str, Any]) -> None:
    found = compared(**train)
    assert found.loss_off < 1e-5
    assert found.gradients_off <= found.worst_off < 1e-5


@pytest.mark.parametrize("train", [{}, PACKED], ids=["padded", "packed"])
def test_in_bf16_they_are_the_same_within_its_noise(compared: Callable[..., GradientParity], train: dict[str, Any]) -> None:
    found = compared(precision="bf16", **train)
    assert found.loss_off < 2e-2
    assert 1e-5 < found.gradients_off < 2e-2
    # A weight whose gradient is small has more noise; ours is as near to fp32 as the plain path is.
    ours = compared(precision="bf16", against="stock in fp32", **train)
    stock = compared(precision="bf16", ours="stock", against="stock in fp32", **train)
    assert ours.gradients_off < 1.2 * stock.gradients_off
    assert found.worst_off < 1.5 * stock.worst_off and ours.worst_off < 1.2 * stock.worst_off


def test_an_adapter_whose_scale_is_a_little_off_is_found_by_name(
    compared: Callable[..., GradientParity], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fused_lora._backward

    def off(*given: Any) -> Any:
        of_x, of_dropped, of_down, of_up = usual(*given)
        return of_x, of_dropped, 1.001 * of_down, of_up

    monkeypatch.setattr(fused_lora, "_backward", off)
    found = compared()
    assert found.worst_off == pytest.approx(1e-3, rel=0.05)
    assert ".lora_A." in found.worst
    assert found.worst in str(found)
    assert found.loss_off < 1e-5, "the loss alone says nothing"


def test_distances_are_relative_to_the_plain_path() -> None:
    assert GradientParity(1.02, 1.0, 0.0, 0.0, "").loss_off == pytest.approx(0.02)
    assert np.isclose(GradientParity(2.0, 4.0, 0.0, 0.0, "").loss_off, 0.5)
