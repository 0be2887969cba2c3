"""The estimated memory of a training step agrees with real tensors as far as a CPU shows them, and meets the targets."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

import config as configuration
from benchmarks.memory.memory_estimate import (
    activation_bytes_per_token,
    estimate_memory,
    persistent_bytes,
    vision_activation_bytes_per_patch,
)
from benchmarks.recipes import SIZES
from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from model.blip2.config import Blip2Config
from model.family import LoadOptions
from model.lora import enable_gradient_checkpointing
from model.qwen_vl.config import QwenVlConfig
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig, siglip_qwen_settings
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.model.saved_tensors import saved_tensor_bytes
from training.config import TrainConfig

RECIPE = configuration.DEFAULT.parent / SIZES["4b"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "target"), [("4b", 10), ("8b", 14)])
def test_qlora_in_rows_of_1024_meets_its_target(size: Any, target: float) -> None:
    config = configuration.load(RECIPE)
    assert (config.train.packing_length, config.train.optim, config.model.quantization) == (1024, "paged_adamw8bit", "nf4")
    report = estimate_memory(size, siglip_qwen_settings(config.model, "an estimate"), config.train)
    estimated = report.measured["bytes"]
    assert estimated["in all"] == pytest.approx(sum(estimated.values()) / 2)
    assert 0.5 * target < estimated["in all"] / 2**30 < target
    plain = estimate_memory(size, SiglipQwenConfig(max_length=1024), config.train).measured["bytes"]
    assert plain["language model's layers"] == pytest.approx(2 / 0.516 * estimated["language model's layers"], rel=0.001)


def test_the_recipe_for_a_t4_fits_into_half_of_it() -> None:
    config = configuration.load(configuration.DEFAULT.parent / "siglip_qwen3_1.7b_t4.yaml")
    report = estimate_memory("1.7b", siglip_qwen_settings(config.model, "an estimate"), config.train)
    assert report.facts["step"].startswith("8 samples of at most 512 tokens, all layers checkpointed")
    estimated = report.measured["bytes"]
    assert estimated["attention scores of one layer, at most"] == 3 * 4 * 8 * 16 * 512**2
    assert 0.4 * 15 < estimated["in all"] / 2**30 < 0.5 * 15


def test_blip2_with_opt_2_7b_in_four_bits_meets_its_target_at_eight_samples() -> None:
    config = configuration.load(configuration.DEFAULT.parent / "blip2_vqav2_qlora.yaml")
    assert isinstance(config.model, Blip2Config) and config.train.per_device_train_batch_size == 8
    parts = estimate_memory("blip2-opt-2.7b", config.model, config.train).measured["bytes"]
    assert 5 < parts["in all"] / 2**30 < 12
    # OPT's layers: 2.5 billion weights of half a byte and their scales; two adapters of rank 16 in each of 32 layers.
    assert parts["language model's layers"] == pytest.approx(2.517e9 * 0.516, rel=0.01)
    assert parts["optimizer"] == 32 * 2 * 2 * 16 * 2560 * 8


def test_qwen3_vl_4b_in_four_bits_meets_its_target_at_1024_image_tokens() -> None:
    config = configuration.load(configuration.DEFAULT.parent / "qwen3_vl_4b_qlora.yaml")
    assert isinstance(config.model, QwenVlConfig)
    report = estimate_memory("qwen3-vl-4b", config.model, config.train)
    assert "1,024 of them visual" in report.facts["step"] and "nf4" in report.facts["step"]
    estimated = report.measured["bytes"]
    assert 4 < estimated["in all"] / 2**30 < 14
    # Qwen3-4B's layers have 3.6 billion weights, the vision tower .4 billion.
    assert estimated["language model's layers"] == pytest.approx(0.516 * 3.634e9, rel=0.01)
    assert estimated["vision encoder"] == pytest.approx(2 * 0.41e9, rel=0.1)


@pytest.fixture
def settings(parts: Path) -> SiglipQwenConfig:
    lora = LoraConfig(r=16, lora_alpha=8, lora_dropout=0.1)
    return SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=lora, quantization="nf4", max_length=256)


def test_persistent_bytes_are_those_of_the_tensors_of_a_quantised_model(settings: SiglipQwenConfig, processor: Processor) -> None:
    model = configure_trainable(
        build(settings, image_token_id=processor.image_token_id, options=LoadOptions(torch.bfloat16)), settings, ["connector", "lora"]
    )
    quantised_bytes = 0
    for module in base_model(model).model.language_model.layers.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            state_tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            quantised_bytes += module.weight.nbytes + sum(tensor.nbytes for tensor in state_tensors)
    plain = dataclasses.replace(settings, quantization="none")
    unquantised = build(plain, image_token_id=processor.image_token_id, options=LoadOptions(torch.bfloat16))
    estimated = persistent_bytes(configure_trainable(unquantised, plain, ["connector", "lora"]), settings, TrainConfig())
    assert quantised_bytes <= estimated["language model's layers"] <= 1.01 * quantised_bytes
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert estimated["trained weights and gradients, fp32"] == 2 * sum(parameter.nbytes for parameter in trained)
    frozen = sum(p.nbytes for n, p in model.named_parameters() if not p.requires_grad and not n.endswith("base_layer.weight"))
    assert estimated["vision encoder"] + estimated["vocabulary, norms"] == frozen


def test_saved_activations_of_a_layer_are_within_30_percent_of_the_estimate(settings: SiglipQwenConfig, processor: Processor) -> None:
    model = configure_trainable(
        build(settings, image_token_id=processor.image_token_id, options=LoadOptions(torch.bfloat16)), settings, ["connector", "lora"]
    ).train()
    layers, ids = base_model(model).model.language_model.layers, list(range(100, 220))
    examples = [
        Example(str(i), EncodedSample(ids, [IGNORE_INDEX, *ids[1:]], 0), {"pixel_values": torch.zeros(0, 3, 96, 96)}) for i in range(4)
    ]
    batch = PaddedCollator(0)(examples)

    enable_gradient_checkpointing(model, len(layers))
    checkpointed = saved_tensor_bytes(lambda: model(**batch).loss)
    enable_gradient_checkpointing(model, 0)
    per_layer = (saved_tensor_bytes(lambda: model(**batch).loss) - checkpointed) / len(layers)
    assert 4 * len(ids) * activation_bytes_per_token(base_model(model).config.text_config, settings) == pytest.approx(per_layer, rel=0.3)


def mean_features(model: VisionLanguageModel, pixels: torch.Tensor) -> torch.Tensor:
    return model.encode_images(pixels).mean()


def test_the_estimated_activations_of_a_trained_vision_layer_agree_with_the_tensors_that_autograd_saves(
    settings: SiglipQwenConfig, processor: Processor
) -> None:
    config = dataclasses.replace(settings, quantization="none", lora=None)
    saved = []
    for layers in (1, 3):
        changed = dataclasses.replace(config, vision_layers=layers)
        model = configure_trainable(build(changed, processor.image_token_id, LoadOptions(torch.float32)), changed, ["vision"]).train()
        inner = base_model(model)
        pixels = torch.randn(8, 3, 96, 96)
        saved.append(saved_tensor_bytes(partial(mean_features, inner, pixels)))
    vision = base_model(model).config.vision_config
    patches = 8 * (vision.image_size // vision.patch_size) ** 2
    weights = sum(weight.numel() for weight in inner.model.vision_tower.encoder.layers[0].parameters())
    expected = vision_activation_bytes_per_patch(vision) * patches + 2 * weights
    assert expected == pytest.approx((saved[1] - saved[0]) / 2, rel=0.05)


def test_the_recipe_that_trains_the_vision_encoder_knows_what_that_takes() -> None:
    config = configuration.load(configuration.DEFAULT.parent / "siglip_qwen3_1.7b_vision.yaml")
    model = siglip_qwen_settings(config.model, "an estimate")
    parts = estimate_memory("1.7b", model, config.train).measured["bytes"]
    frozen = dataclasses.replace(config.train, stages=(dataclasses.replace(config.train.stages[-1], train=("connector", "lora")),))
    without = estimate_memory("1.7b", model, frozen).measured["bytes"]
    # A layer of SigLIP-so400m has 15.2 million weights.
    layers = model.vision_layers
    assert isinstance(layers, int)
    assert parts["optimizer"] - without["optimizer"] == pytest.approx(layers * 15.2e6 * 8, rel=0.02)
    assert parts["vision encoder"] == pytest.approx(without["vision encoder"] - layers * 15.2e6 * 2, rel=0.02)
    assert parts["inputs of the trained vision layers"] == layers * (8192 // 729) * 729 * 1152 * 4
    assert parts["in all"] / 2**30 < 0.8 * 24
