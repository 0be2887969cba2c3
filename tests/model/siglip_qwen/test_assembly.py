"""Building a model from a SiglipQwenConfig: sizes, dtypes, frozen weights, quantisation, errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, Trainer, TrainingArguments

from errors import UsageError
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.kernels.chunked_cross_entropy import LanguageModelHead
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build, language_config, minimal_generation_config, tokens_per_image
from model.siglip_qwen.config import ConnectorConfig, SiglipQwenConfig
from tests.model.conftest import Build

Settings = Callable[..., SiglipQwenConfig]


def test_sizes_are_read_without_loading_weights(settings: Settings, parts: Path, tmp_path: Path) -> None:
    for part in ("siglip", "qwen3"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes((parts / part / "config.json").read_bytes())
    config = settings(vision=str(tmp_path / "siglip"), language=str(tmp_path / "qwen3"))
    assert tokens_per_image(config) == 36
    assert language_config(config.language).vocab_size == 1536
    with pytest.raises(UsageError, match=r"model.vision: cannot load"):
        build(config, image_token_id=6)


@pytest.mark.parametrize(("pool", "tokens"), [(2, 9), (3, 4), (6, 1)])
def test_pooling_reduces_the_number_of_image_tokens(settings: Settings, make: Build, batch: Callable, pool: int, tokens: int) -> None:
    config = settings(connector=ConnectorConfig(kind="mlp_pool", pool=pool))
    assert tokens_per_image(config) == tokens
    model, inputs = make(connector=ConnectorConfig(kind="mlp_pool", pool=pool)), batch(1)
    inputs["input_ids"][0, 5 + tokens : 41] = 200
    assert model(**inputs).logits.isfinite().all()


def test_everything_is_frozen_and_in_eval_mode(make: Build) -> None:
    model = make()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_frozen_weights_have_the_given_dtype_and_the_connector_is_fp32(settings: Settings) -> None:
    model = build(settings(), image_token_id=6, options=LoadOptions(torch.bfloat16))
    assert {p.dtype for p in model.model.vision_tower.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.model.multi_modal_projector.parameters()} == {torch.float32}


def test_a_bf16_model_gives_close_logits_with_and_without_autocast(settings: Settings, batch: Callable, processor: object) -> None:
    model = build(settings(), image_token_id=processor.image_token_id, options=LoadOptions(torch.bfloat16))  # type: ignore[attr-defined]
    inputs = batch(1)
    with torch.autocast("cpu", torch.bfloat16):
        with_autocast = model(**inputs).logits
    torch.testing.assert_close(with_autocast, model(**inputs).logits, atol=0.05, rtol=0.05)


def test_the_generation_config_takes_only_end_and_padding_tokens_from_the_language_model(make: Build) -> None:
    language = make()
    language.generation_config = GenerationConfig(
        eos_token_id=[2, 0], temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, do_sample=True
    )
    language.config.pad_token_id = None
    plain = minimal_generation_config(language)
    assert (plain.eos_token_id, plain.pad_token_id) == ([2, 0], 2)
    assert plain.to_diff_dict().keys() <= {"eos_token_id", "pad_token_id", "transformers_version"}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_linear_layers_of_the_language_model_are_quantised(make: Build, quantization: str) -> None:
    model = make(quantization=quantization)
    kinds = {type(m).__name__ for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)}
    assert kinds == {"Linear4bit" if quantization == "nf4" else "Linear8bitLt"}
    others = [*model.model.vision_tower.modules(), *model.model.multi_modal_projector.modules(), model.lm_head]
    assert {type(m) for m in others if isinstance(m, torch.nn.Linear)} <= {
        torch.nn.Linear,
        LanguageModelHead,
        torch.nn.modules.linear.NonDynamicallyQuantizableLinear,
    }


def test_nf4_uses_double_quantisation_and_disables_avx512bf16(make: Build) -> None:
    layer = make(quantization="nf4").model.language_model.layers[0].mlp.up_proj
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.support_avx512bf16_for_cpu is False


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("groups", [["connector"], ["connector", "lora"]])
def test_the_trainer_accepts_a_quantised_base_model(
    make: Build, settings: Settings, tmp_path: Path, quantization: str, groups: list[ParamGroup]
) -> None:
    model = configure_trainable(make(quantization=quantization), settings(quantization=quantization), groups)
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    assert trainer.model_accepts_loss_kwargs
    assert trainer._loss_shifts_labels


def test_quantised_logits_are_close_to_the_unquantised_ones(make: Build, batch: Callable) -> None:
    inputs = batch(1, 2)
    exact = make()(**inputs).logits
    for quantization, tolerance in {"int8": 0.02, "nf4": 0.15}.items():
        assert 0 < (make(quantization=quantization)(**inputs).logits - exact).norm() / exact.norm() < tolerance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "qwen3_vl"}, "model.language: .*qwen3_vl is a qwen3_vl model; a dense causal Qwen"),
        ({"language": "siglip"}, "model.language: .*siglip is a siglip model"),
        ({"vision": "qwen3"}, "model.vision: .*qwen3 is a qwen3 model; expected a SigLIP"),
        ({"vision": "nowhere"}, "model.vision: cannot load"),
        ({"vision_feature_layer": 5}, "model.vision_feature_layer: 5 is out of range; the vision encoder has hidden states -5 to 4"),
    ],
)
def test_an_unsupported_model_is_an_error_of_one_line_naming_its_key(settings: Settings, parts: Path, changes: dict, message: str) -> None:
    changes = {key: str(parts / value) if key in ("vision", "language") else value for key, value in changes.items()}
    with pytest.raises(UsageError, match=message) as error:
        build(settings(**changes), image_token_id=6)
    assert "\n" not in str(error.value)


def test_a_language_model_with_missing_weights_is_an_error(settings: Settings, parts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((parts / "qwen3" / "config.json").read_bytes())
    weights = load_file(parts / "qwen3" / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks weights of the language model, such as model.layers.0.mlp.up_proj.weight"):
        build(settings(language=str(tmp_path)), image_token_id=6)
