from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from model.siglip_qwen import family
from model.siglip_qwen.config import ConnectorConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import VisionLanguageModel
from model.step_flops import StepFlops, count_step_flops
from training.monitoring.throughput import ThroughputMeter, peak_tflops


class TinyModel(nn.Module):
    """Layers named as in the real model; the sizes differ so that every layer has another number of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(3, 5)}) for _ in range(2)])})
        self.multi_modal_projector = nn.Linear(5, 7)
        self.language_model = nn.Linear(7, 11)
        self.lora_A = nn.Linear(7, 2)
        self.lm_head = nn.Linear(11, 13)
        self.requires_grad_(False)


def test_frozen_weights_cost_four_flops_per_token_and_trained_ones_six() -> None:
    model = TinyModel()
    model.lora_A.requires_grad_(True)
    cost = count_step_flops(model, patches=10, vision_layers=2, tokens_per_image=4)
    assert cost.per_token == 4 * 7 * 11 + 6 * 7 * 2
    assert cost.per_supervised_token == 4 * 11 * 13
    assert cost.per_image == 2 * (2 * 3 * 5) * 10 + 4 * 5 * 7 * 4
    model.requires_grad_(True)
    assert count_step_flops(model, 10, 2, 4).per_token == 6 * (7 * 11 + 7 * 2)


def test_after_the_last_attention_only_supervised_positions_count() -> None:
    layers = nn.ModuleList([nn.ModuleDict({"self_attn": nn.Linear(3, 5), "mlp": nn.ModuleDict({"up": nn.Linear(5, 7)})}) for _ in range(2)])
    cost = count_step_flops(nn.ModuleDict({"language_model": nn.ModuleDict({"layers": layers})}).requires_grad_(False), 0, 0, 0)
    assert cost.per_token == 4 * (2 * 3 * 5 + 5 * 7)
    assert cost.per_supervised_token == 4 * 5 * 7


def test_vision_layers_above_the_feature_layer_are_not_counted() -> None:
    assert count_step_flops(TinyModel(), 10, 1, 0).per_image == 2 * 3 * 5 * 10


def test_with_cached_features_the_vision_encoder_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = SimpleNamespace(num_hidden_layers=2, image_size=8, patch_size=2, model_type="siglip_vision_model")
    config = SimpleNamespace(
        vision_config=vision, vision_feature_layer=-1, connector_config=ConnectorConfig(), drop_first_patch=False, image_side=8
    )
    connector = SimpleNamespace(rows_per_image=lambda _layer, _patches, tokens: tokens)
    model_of = SimpleNamespace(config=config, model=SimpleNamespace(multi_modal_projector=connector))
    monkeypatch.setattr(family, "base_model", lambda _: model_of)
    model = cast(VisionLanguageModel, TinyModel())
    full, cached = FAMILY.step_flops(model), FAMILY.step_flops(model, features_cached=True)
    assert full.per_image - cached.per_image == 2 * (2 * 3 * 5) * 16
    assert (full.per_token, full.per_supervised_token) == (cached.per_token, cached.per_supervised_token)


def test_four_bit_weights_count_as_whole_weights() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = nn.ModuleDict({"language_model": bnb.nn.Linear4bit(64, 64, bias=False)}).to("cpu")
    assert count_step_flops(model, 0, 0, 0).per_token == 4 * 64 * 64


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla T4", 65.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("NVIDIA T400", None),
    ],
)
def test_peak_tflops_match_whole_words_of_the_device_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def batch(labels: list[list[int]], mask: list[list[int]] | None = None, images: int = 1) -> dict[str, object]:
    inputs: dict[str, object] = {
        "labels": torch.tensor(labels),
        "pixel_values": torch.zeros(images, 3, 2, 2),
        "sample_ids": ["a"] * len(labels),
    }
    return inputs if mask is None else {**inputs, "attention_mask": torch.tensor(mask)}


def test_rates_exclude_padding_and_sum_over_all_ranks() -> None:
    now = iter([0.0, 10.0, 11.0, 12.0])
    meter = ThroughputMeter(StepFlops(1e12, 1e13, 0.0), torch.device("cpu"), peak=100.0, clock=lambda: next(now))
    meter.count(batch([[-100, 5, 6, -100], [-100, -100, 5, 6]], [[1, 1, 1, 0], [1, 1, 1, 1]]))
    with meter.waiting():
        pass
    rates = meter.read(lambda counts: torch.stack([counts, counts]))
    # 12 seconds; 7 tokens, 4 of them supervised, 2 samples; two ranks with the same counts.
    assert rates.supervised_tokens_per_second == pytest.approx(2 * 4 / 12)
    assert rates.samples_per_second == pytest.approx(2 * 2 / 12)
    assert rates.data_wait == pytest.approx(1 / 12)
    assert rates.tflops == pytest.approx((7 + 40) / 12)
    assert rates.mfu == pytest.approx((7 + 40) / 12 / 100)
    assert rates.peak_memory_gib > 0


def test_padding_at_the_end_of_a_packed_row_is_not_counted() -> None:
    now = iter([0.0, 1.0])
    meter = ThroughputMeter(StepFlops(1e12, 0.0, 0.0), torch.device("cpu"), peak=100.0, clock=lambda: next(now))
    meter.count(batch([[-100, 5, -100, 6, -100, -100, -100]]))
    assert meter.read(lambda counts: counts[None]).tflops == pytest.approx(4)


def test_pauses_are_excluded_and_an_unknown_device_has_no_mfu() -> None:
    now = iter([0.0, 1.0, 91.0, 92.0])
    meter = ThroughputMeter(StepFlops(1.0, 1.0, 1.0), torch.device("cpu"), peak=None, clock=lambda: next(now))
    meter.count(batch([[-100, 5]], [[1, 1]]))
    with meter.paused():
        pass
    rates = meter.read(lambda counts: counts[None])
    assert rates.samples_per_second == pytest.approx(0.5)
    assert rates.tflops is rates.mfu is None
