"""The adapters' product in fewer passes is PEFT's product."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel

from model.kernels import fused_lora
from model.kernels.fused_lora import FusedLoraLinear, fuse_lora
from model.lora import configure_trainable
from model.siglip_qwen.checkpoint import load, merge, save
from model.siglip_qwen.config import LoraConfig, ModelConfig
from tests.model.conftest import Build
from tests.model.kept import saved_tensor_bytes
from tests.model.siglip_qwen.test_modeling import loss_and_gradients, with_labels

Settings = Callable[..., ModelConfig]
Batch = Callable[..., dict[str, torch.Tensor]]


def with_a_trained_look(model: Any) -> PeftModel:
    """B begins at zero, behind which no error of A shows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    adapted: PeftModel = model
    return adapted


@pytest.fixture
def adapted(make: Build, settings: Settings) -> PeftModel:
    return with_a_trained_look(configure_trainable(make(), settings(), ["connector", "lora"])).train()


@pytest.mark.parametrize("small", [0, fused_lora.MAX_MERGED_WEIGHTS], ids=["apart", "added"])
def test_loss_and_gradients_are_peft_s(adapted: PeftModel, batch: Batch, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(fused_lora, "MAX_MERGED_WEIGHTS", small)
    added: list[int] = []
    usual = fused_lora._MergedLoraFunction.apply

    def counted(x: torch.Tensor, *rest: Any) -> Any:
        added.append(len(x))
        return usual(x, *rest)

    monkeypatch.setattr(fused_lora._MergedLoraFunction, "apply", counted)
    inputs = with_labels(batch(1, 2))
    wanted = loss_and_gradients(adapted, inputs)
    assert fuse_lora(adapted) == 5 * 7
    torch.testing.assert_close(loss_and_gradients(adapted, inputs), wanted, atol=1e-5, rtol=0)
    assert sum("lora_" in name for name in wanted[1]) == 2 * 5 * 7
    assert len(added) == (5 * 7 if small else 0)


def test_matrices_are_added_where_that_is_exact_and_pays() -> None:
    tokens, weight = torch.zeros(100, 64), torch.zeros(96, 64)
    assert fused_lora._merging_is_faster(tokens, weight)
    assert not fused_lora._merging_is_faster(tokens[:38], weight), "fewer tokens than the sum costs"
    assert not fused_lora._merging_is_faster(tokens.bfloat16(), weight.bfloat16())
    assert not fused_lora._merging_is_faster(tokens, weight.bfloat16())
    assert not fused_lora._merging_is_faster(torch.zeros(10_000, 1024, device="meta"), torch.zeros(1025, 1024, device="meta"))


def test_a_base_layer_with_a_bias_keeps_it(make: Build, settings: Settings, batch: Batch, qwen2: Path) -> None:
    model = with_a_trained_look(configure_trainable(make(language=str(qwen2)), settings(), ["lora"])).train()
    for name, parameter in model.named_parameters():
        if name.endswith("q_proj.base_layer.bias"):
            parameter.data.fill_(0.3)
    inputs = with_labels(batch(1, 2))
    wanted = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.testing.assert_close(loss_and_gradients(model, inputs), wanted, atol=1e-5, rtol=0)


def test_under_autocast_it_is_as_near_to_fp32_as_peft_is(adapted: PeftModel, batch: Batch) -> None:
    inputs = with_labels(batch(1, 2))
    exact = loss_and_gradients(adapted, inputs)[1]

    def error() -> float:
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = adapted(**inputs).loss
        loss.backward()
        found = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        return float(sum((found[name] - exact[name]).norm() for name in exact) / sum(exact[name].norm() for name in exact))

    of_peft = error()
    fuse_lora(adapted)
    assert error() < max(1.2 * of_peft, 1e-3)


def test_layers_with_the_same_input_keep_one_of_it(make: Build, settings: Settings, batch: Batch) -> None:
    adapted = configure_trainable(make().to(torch.bfloat16), settings(), ["connector", "lora"]).train()
    inputs = with_labels(batch(1, 2))

    of_peft = saved_tensor_bytes(lambda: adapted(**inputs).loss)
    fuse_lora(adapted)
    assert saved_tensor_bytes(lambda: adapted(**inputs).loss) < of_peft


@pytest.mark.parametrize("r", [4, 8])
def test_dropout_drops_what_peft_s_does(make: Build, settings: Settings, batch: Batch, r: int) -> None:
    model = with_a_trained_look(
        configure_trainable(make(), settings(lora=LoraConfig(r=r, lora_alpha=8, lora_dropout=0.3)), ["connector", "lora"])
    ).train()
    inputs = with_labels(batch(1, 2))
    torch.manual_seed(3)
    wanted = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.manual_seed(3)
    torch.testing.assert_close(loss_and_gradients(model, inputs), wanted, atol=1e-5, rtol=0)
    torch.manual_seed(4)
    assert loss_and_gradients(model, inputs)[0] != wanted[0]


def test_dora_stays_peft_s(make: Build, settings: Settings, batch: Batch) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_dora=True)
    model = with_a_trained_look(configure_trainable(make(), settings(lora=lora), ["connector", "lora"])).train()
    inputs = with_labels(batch(1, 2))
    wanted = loss_and_gradients(model, inputs)
    fuse_lora(model)
    torch.testing.assert_close(loss_and_gradients(model, inputs), wanted, atol=0, rtol=0)


def test_adapters_on_a_quantised_base_stay_peft_s(make: Build, settings: Settings) -> None:
    model = configure_trainable(make(quantization="nf4"), settings(quantization="nf4"), ["lora"])
    assert fuse_lora(model) == 0
    assert fuse_lora(configure_trainable(make(), settings(), ["connector"])) == 0


def test_switching_off_saving_loading_and_merging_stay_peft_s(adapted: PeftModel, batch: Batch, tmp_path: Path) -> None:
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
    wanted = adapted(**inputs).logits
    assert not torch.allclose(wanted, plain)
    save(adapted, tmp_path / "saved")
    for other in (load(tmp_path / "saved"), merge(tmp_path / "saved"), adapted.merge_and_unload()):
        torch.testing.assert_close(other(**inputs).logits, wanted, atol=1e-4, rtol=0)
