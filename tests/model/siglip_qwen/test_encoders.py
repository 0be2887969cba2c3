"""Other vision encoders than SigLIP: the features of transformers' own classes, in training, checkpoints and the LLaVA layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.family_config import ParamGroup
from model.hub import llava_export
from model.param_groups import trainable_param_groups
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build, tokens_per_image
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import VisionLanguageModel
from visual.vision_encoder import encode, load, num_prefix_tokens

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS: dict[str, PreTrainedConfig] = {
    "clip": CLIPVisionConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=16),
    "dinov2": Dinov2Config(**SIZES, mlp_ratio=2, image_size=96, patch_size=16),
    "registers": Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, image_size=96, patch_size=16, num_register_tokens=2),
    "dinov3": DINOv3ViTConfig(**SIZES, intermediate_size=64, image_size=96, patch_size=16, num_register_tokens=2),
}
SIDE = 64
"""Of the images that the image processors give: not that of DINOv2's pre-training."""

Settings = Callable[..., SiglipQwenConfig]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small untrained encoders, with image processors that crop the middle of an image."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        AutoModel.from_config(config).save_pretrained(root / name)
        processor = CLIPImageProcessorPil if name == "clip" else BitImageProcessorPil
        processor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(root / name)
    return root


def built(settings: Settings, folder: Path, **changes: Any) -> tuple[VisionLanguageModel, SiglipQwenConfig]:
    torch.manual_seed(0)
    config = settings(vision=str(folder), **changes)
    model = build(config, image_token_id=FAMILY.processor(config).image_token_id)
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.mul_(3)
    return model, config


def inputs_of(model: VisionLanguageModel, config: SiglipQwenConfig) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[300, *[model.config.image_token_id] * tokens_per_image(config), 301, 302]])
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layer", [0, 1, -2, -1, "last_hidden_state"])
def test_features_are_the_hidden_states_at_the_patches(encoders: Path, name: str, layer: Any) -> None:
    tower = load(str(encoders / name), dtype=torch.float32)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    outputs = tower(pixel_values=pixels, output_hidden_states=True)
    expected = outputs.last_hidden_state if layer == "last_hidden_state" else outputs.hidden_states[layer]
    prefix = {"clip": 1, "dinov2": 1, "registers": 3, "dinov3": 3}[name]
    assert num_prefix_tokens(tower.config) == prefix
    features = encode(tower, pixels, layer)
    assert features.shape == (2, 16, 32)
    torch.testing.assert_close(features, expected[:, prefix:])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_has_as_many_tokens_as_its_processor_gives_patches(encoders: Path, settings: Settings, name: str) -> None:
    model, config = built(settings, encoders / name)
    processor = FAMILY.processor(config)
    assert tokens_per_image(config) == processor.tokens_per_image == (SIDE // 16) ** 2
    assert processor.pixel_reader.read([]).shape == (0, 3, SIDE, SIDE)
    assert model(**inputs_of(model, config)).logits.isfinite().all()
    # A batch without images on one rank: a blank image goes through encoder and connector.
    ids = torch.tensor([[300, 301, 302]])
    assert model.requires_grad_(True)(input_ids=ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("way", [{}, {"vision_layers": 1}, {"vision_lora": LoraConfig(r=2, lora_dropout=0.0)}], ids=["all", "last", "LoRA"])
def test_it_is_trained_saved_and_loaded(encoders: Path, settings: Settings, tmp_path: Path, name: str, way: dict[str, Any]) -> None:
    model, config = built(settings, encoders / name, **way)
    inputs, groups = inputs_of(model, config), list[ParamGroup](["vision", "connector", "lora"])
    trained = configure_trainable(model, config, groups, groups).train()
    trained(**inputs, labels=inputs["input_ids"]).loss.backward()
    parameters = trainable_param_groups(trained)["vision"]
    assert all(parameter.grad is not None for parameter in parameters.values())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    trained.eval()
    checkpoint.save(trained, tmp_path)
    write_manifest(tmp_path)
    for loaded in (checkpoint.load(tmp_path), checkpoint.merge(tmp_path)):
        torch.testing.assert_close(loaded(**inputs).logits, trained(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_the_llava_export_gives_the_same_logits_in_stock_transformers(
    encoders: Path, settings: Settings, tmp_path: Path, name: str
) -> None:
    model, config = built(settings, encoders / name)
    model = configure_trainable(model, config, ["connector"])
    checkpoint.save(model, tmp_path / "c")
    processor = FAMILY.processor(config)
    processor.save(tmp_path / "c")
    write_manifest(tmp_path / "c")
    assert llava_export.export(tmp_path / "c", tmp_path / "out", "llava", processor) == []
    stock, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = inputs_of(model, config)
    torch.testing.assert_close(stock.eval()(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    settings_of_processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert settings_of_processor["num_additional_image_tokens"] == 1


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [("registers", -2, "3 positions before its patches"), ("dinov2", "last_hidden_state", "does not have for DINOv2")],
)
def test_what_the_llava_layout_cannot_express_is_refused(
    encoders: Path, settings: Settings, tmp_path: Path, name: str, layer: Any, message: str
) -> None:
    model, config = built(settings, encoders / name, vision_feature_layer=layer)
    checkpoint.save(configure_trainable(model, config, ["connector"]), tmp_path / "c")
    write_manifest(tmp_path / "c")
    with pytest.raises(UsageError, match=message):
        llava_export.export(tmp_path / "c", tmp_path / "out", "llava", FAMILY.processor(config))


def test_a_class_token_is_left_out_without_being_asked(encoders: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"model\.drop_first_patch: a class token is left out in any case"):
        tokens_per_image(settings(vision=str(encoders / "clip"), drop_first_patch=True))


def test_an_image_size_that_is_no_whole_number_of_patches_is_an_error(encoders: Path, settings: Settings, tmp_path: Path) -> None:
    for file in (encoders / "dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    BitImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60}).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"gives 60 x 60 pixels; expected a square of whole patches of 16 pixels"):
        tokens_per_image(settings(vision=str(tmp_path)))
