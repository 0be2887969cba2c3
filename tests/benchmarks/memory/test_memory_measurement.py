"""The memory benchmark runs steps of a model that is quantised like a loaded one; a CPU runs them, but reports no bytes."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch

import cli
from benchmarks.full_size_models import build_ours, build_processor, quantise
from benchmarks.memory.memory_measurement import STEPS, measure
from errors import UsageError
from model.family import LoadOptions
from model.kernels.chunked_cross_entropy import LanguageModelHead
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from tools import benchmark
from training.config import StageConfig, TrainConfig

CPU = torch.device("cpu")
MODEL = SiglipQwenConfig(max_length=512, lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0), quantization="nf4")
TRAIN = TrainConfig(
    stages=(StageConfig(name="tune", train=("connector", "lora")),),
    batching="packed",
    packing_length=160,
    gradient_accumulation_steps=2,
    precision="bf16",
)


@pytest.mark.slow
def test_weights_are_quantised_like_those_of_a_loaded_model(parts: Path) -> None:
    plain = SiglipQwenConfig(max_length=512)
    created = build_ours("tiny", plain, build_processor("tiny", plain), dtype=torch.float32, device=CPU, load_in_4bit=True)
    settings = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), quantization="nf4")
    loaded = build(settings, image_token_id=5, options=LoadOptions(torch.float32))
    for module, other in zip(created.model.language_model.layers.modules(), loaded.model.language_model.layers.modules(), strict=True):
        assert type(module) is type(other)
        if isinstance(module, bnb.nn.Linear4bit):
            a, b = module.weight.quant_state, other.weight.quant_state
            assert (a.quant_type, a.nested, a.dtype, a.blocksize) == (b.quant_type, b.nested, b.dtype, b.blocksize)
            assert (module.compute_dtype, module.support_avx512bf16_for_cpu) == (other.compute_dtype, other.support_avx512bf16_for_cpu)
            assert module.weight.nbytes == other.weight.nbytes and not module.weight.requires_grad
    assert type(created.lm_head) is LanguageModelHead
    layer = build_ours("tiny", plain, build_processor("tiny", plain), dtype=torch.float32, device=CPU).model.language_model.layers[0]
    weight = layer.mlp.up_proj.weight.clone()
    quantise(layer)
    layer = layer.mlp.up_proj
    back = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert 0 < float((back - weight).norm() / weight.norm()) < 0.15


@pytest.mark.slow
def test_layers_that_are_quantised_one_at_a_time_equal_those_of_the_unquantised_model() -> None:
    plain = SiglipQwenConfig(max_length=512)
    plain_model, created = (
        build_ours("tiny", plain, build_processor("tiny", plain), dtype=torch.float32, device=CPU, load_in_4bit=load_in_4bit)
        for load_in_4bit in (False, True)
    )
    assert created.is_loaded_in_4bit and created.config.text_config.to_dict() == plain_model.config.text_config.to_dict()
    layers, expected = created.model.language_model.layers, plain_model.model.language_model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(len(expected)))
    assert all(layer.self_attn.config is created.model.language_model.config for layer in layers)
    for layer, other in zip(layers, expected, strict=True):
        back = bnb.functional.dequantize_4bit(layer.mlp.up_proj.weight.data, layer.mlp.up_proj.weight.quant_state)
        assert back.std() == pytest.approx(float(other.mlp.up_proj.weight.std()), rel=0.1)
        assert torch.equal(layer.input_layernorm.weight, other.input_layernorm.weight)


def test_steps_of_the_recipe_are_run_and_the_estimate_is_reported() -> None:
    report = measure("tiny", MODEL, TRAIN, CPU)
    assert report.facts["step"] == f"2 micro-batches in rows of 160, 77% full, adamw; {STEPS} steps"
    assert "language model in nf4" in report.facts["model"]
    assert len(report.measured["seconds"]) == STEPS
    assert list(report.measured["bytes"]) == ["computed"], "a CPU does not report the memory of a step"


def test_rows_that_are_shorter_than_a_sample_and_int8_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"train\.packing_length: 40 is less than the shortest sample"):
        measure("tiny", MODEL, TrainConfig(stages=TRAIN.stages, batching="packed", packing_length=40), CPU)
    with pytest.raises(UsageError, match=r"model\.quantization: int8"):
        measure("tiny", SiglipQwenConfig(quantization="int8"), TRAIN, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [["gpu"], ["memory", "--size", "4b", "--run"]], ids=["gpu", "memory"])
def test_without_a_gpu_the_error_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(benchmark.main, benchmark.arguments(), arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "there is no CUDA device that torch" in error
