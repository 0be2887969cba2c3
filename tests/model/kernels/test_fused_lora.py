"""Fused LoRA layers equal those of PEFT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel

from model.checkpoint_manifest import write_manifest
from model.kernels import fused_lora
from model.kernels.fused_lora import FusedLoraLinear, fuse_lora
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.checkpoint import load, merge, save
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from tests.model.conftest import Build
from tests.model.saved_tensors import saved_tensor_bytes
from tests.model.siglip_qwen.test_modeling import loss_and_gradients, with_labels

Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]


def with_random_lora_b(model: Any) -> PeftModel:
    """Give B random values: PEFT initialises it to zero, which would hide errors in A."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    adapted: PeftModel = model
    return adapted


@pytest.fixture
def adapted(make: Build, settings: Settings) -> PeftModel:
    """A model with LoRA in training mode."""
    return with_random_lora_b(configure_trainable(make(), settings(), ["connector", "lora"])).train()


@pytest.mark.parametrize("max_merged_weights", [0, fused_lora.MAX_MERGED_WEIGHTS], ids=["separate", "merged"])
def test_loss_and_gradients_equal_those_of_peft(
    adapted: PeftModel, batch: Batch, monkeypatch: pytest.MonkeyPatch, max_merged_weights: int
) -> None:
    monkeypatch.setattr(fused_lora, "MAX_MERGED_WEIGHTS", max_merged_weights)
    merged_calls: list[int] = []
    original = fused_lora._MergedLoraFunction.apply

    def counted(x: torch.Tensor, *rest: Any) -> Any:
        merged_calls.append(len(x))
        return original(x, *rest)

    monkeypatch.setattr(fused_lora._MergedLoraFunction, "apply", counted)
    inputs = with_labels(batch(1, 2))
    expected = loss_and_gradients(adapted, inputs)
    assert fuse_lora(adapted) == 5 * 7
    torch.testing.assert_close(loss_and_gradients(adapted, inputs), expected, atol=1e-5, rtol=0)
    assert sum("lora_" in name for name in expected[1]) == 2 * 5 * 7
    assert len(merged_calls) == (5 * 7 if max_merged_weights else 0)


def test_matrices_are_merged_only_in_fp32_on_a_cpu_and_for_enough_tokens() -> None:
    tokens, weight = torch.zeros(100, 64), torch.zeros(96, 64)
    assert fused_lora._merging_is_faster(tokens, weight)
    assert not fused_lora._merging_is_faster(tokens[:38], weight), "too few tokens to repay the merge"
    assert not fused_lora._merging_is_faster(tokens.bfloat16(), weight.bfloat16())
    assert not fused_lora._merging_is_faster(tokens, weight.bfloat16())
    assert not fused_lora._merging_is_faster(torch.zeros(10_000, 1024, device="meta"), torch.zeros(1025, 1024, device="meta"))


def test_the_bias_of_a_base_layer_is_applied(make: Build, settings: Settings, batch: Batch, qwen2: Path) -> None:
    model = with_random_lora_b(configure_trainable(make(language=str(qwen2)), settings(), ["lora"])).train()
    for name, parameter in model.named_parameters():
        if name.endswith("q_proj.base_layer.bias"):
            parameter.data.fill_(0.3)
    inputs = with_labels(batch(1, 2))
    expected = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.testing.assert_close(loss_and_gradients(model, inputs), expected, atol=1e-5, rtol=0)


def test_under_autocast_its_error_is_no_larger_than_that_of_peft(adapted: PeftModel, batch: Batch) -> None:
    inputs = with_labels(batch(1, 2))
    exact = loss_and_gradients(adapted, inputs)[1]

    def error() -> float:
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = adapted(**inputs).loss
        loss.backward()
        gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
        return float(sum((gradients[name] - exact[name]).norm() for name in exact) / sum(exact[name].norm() for name in exact))

    peft_error = error()
    fuse_lora(adapted)
    assert error() < max(1.2 * peft_error, 1e-3)


def test_layers_with_the_same_input_save_it_once(make: Build, settings: Settings, batch: Batch) -> None:
    adapted = configure_trainable(make().to(torch.bfloat16), settings(), ["connector", "lora"]).train()
    inputs = with_labels(batch(1, 2))

    peft_bytes = saved_tensor_bytes(lambda: adapted(**inputs).loss)
    fuse_lora(adapted)
    assert saved_tensor_bytes(lambda: adapted(**inputs).loss) < peft_bytes


@pytest.mark.parametrize("r", [4, 8])
def test_dropout_uses_the_same_random_numbers_as_peft(make: Build, settings: Settings, batch: Batch, r: int) -> None:
    model = with_random_lora_b(
        configure_trainable(make(), settings(lora=LoraConfig(r=r, lora_alpha=8, lora_dropout=0.3)), ["connector", "lora"])
    ).train()
    inputs = with_labels(batch(1, 2))
    torch.manual_seed(3)
    expected = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.manual_seed(3)
    torch.testing.assert_close(loss_and_gradients(model, inputs), expected, atol=1e-5, rtol=0)
    torch.manual_seed(4)
    assert loss_and_gradients(model, inputs)[0] != expected[0]


def test_dora_falls_back_to_peft(make: Build, settings: Settings, batch: Batch) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True)
    model = with_random_lora_b(configure_trainable(make(), settings(lora=lora), ["connector", "lora"])).train()
    inputs = with_labels(batch(1, 2))
    expected = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.testing.assert_close(loss_and_gradients(model, inputs), expected, atol=0, rtol=0)


def test_lora_on_quantised_layers_is_not_fused(make: Build, settings: Settings) -> None:
    model = configure_trainable(make(quantization="nf4"), settings(quantization="nf4"), ["lora"])
    assert fuse_lora(model) == 0
    assert fuse_lora(configure_trainable(make(), settings(), ["connector"])) == 0


def test_disabling_saving_loading_and_merging_work_as_in_peft(adapted: PeftModel, batch: Batch, tmp_path: Path) -> None:
    adapted.eval()
    inputs = batch(1, 2)
    with adapted.disable_adapter():
        plain = adapted(**inputs).logits
    keys = peft.get_peft_model_state_dict(adapted).keys()
    fuse_lora(adapted)
    assert any(isinstance(module, FusedLoraLinear) for module in adapted.modules())
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(**inputs).logits, plain, atol=0, rtol=0)
    assert peft.get_peft_model_state_dict(adapted).keys() == keys
    expected = adapted(**inputs).logits
    assert not torch.allclose(expected, plain)
    save(adapted, tmp_path / "saved")
    write_manifest(tmp_path / "saved")
    for other in (load(tmp_path / "saved"), merge(tmp_path / "saved"), adapted.merge_and_unload()):
        torch.testing.assert_close(other(**inputs).logits, expected, atol=1e-4, rtol=0)
