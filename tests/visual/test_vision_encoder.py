"""The frozen vision encoder gives the hidden states of SigLIP, compiled, sharded or not."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import Siglip2Config, Siglip2VisionConfig, SiglipVisionModel

from errors import UsageError
from visual import vision_encoder


@pytest.fixture(scope="module")
def tower(parts: Path) -> vision_encoder.VisionTower:
    return cast(vision_encoder.VisionTower, vision_encoder.load(str(parts / "siglip"), dtype=torch.float32))


PIXELS = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [0, 1, -1, -2, 4, "last_hidden_state"])
def test_features_are_the_hidden_states_of_the_model(tower: vision_encoder.VisionTower, layer: vision_encoder.FeatureLayer) -> None:
    outputs = tower(PIXELS, output_hidden_states=True)
    expected = outputs.last_hidden_state if layer == "last_hidden_state" else outputs.hidden_states[layer]
    torch.testing.assert_close(vision_encoder.encode(tower, PIXELS, layer), expected)


@pytest.mark.parametrize(("layer", "layers"), [(0, 0), (-2, 3), (-1, 4), ("last_hidden_state", 4)])
def test_only_the_layers_up_to_the_chosen_one_run(
    tower: vision_encoder.VisionTower, layer: vision_encoder.FeatureLayer, layers: int
) -> None:
    seen: list[int] = []
    hooks = [block.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, block in enumerate(tower.encoder.layers)]
    vision_encoder.encode(tower, PIXELS, layer)
    for hook in hooks:
        hook.remove()
    assert seen == list(range(layers))


def test_features_have_no_autograd_history_and_can_be_input_to_trained_layers(tower: vision_encoder.VisionTower) -> None:
    features = vision_encoder.encode(tower, PIXELS.requires_grad_(True), -2)
    assert not features.requires_grad
    linear = torch.nn.Linear(features.shape[-1], 4)
    linear(features).sum().backward()
    assert linear.weight.grad is not None


def test_the_encoder_is_loaded_frozen_in_eval_mode_with_the_given_dtype(parts: Path) -> None:
    tower = vision_encoder.load(str(parts / "siglip"), dtype=torch.bfloat16)
    assert not tower.training
    assert {(p.dtype, p.requires_grad) for p in tower.parameters()} == {(torch.bfloat16, False)}


def test_a_checkpoint_of_the_vision_encoder_alone_gives_the_same_features(
    tower: vision_encoder.VisionTower, parts: Path, tmp_path: Path
) -> None:
    SiglipVisionModel.from_pretrained(parts / "siglip", dtype=torch.float32).save_pretrained(tmp_path)
    vision_only = vision_encoder.load(str(tmp_path), dtype=torch.float32)
    torch.testing.assert_close(vision_encoder.encode(vision_only, PIXELS, -2), vision_encoder.encode(tower, PIXELS, -2))


def test_loading_only_the_vision_encoder_does_not_warn(parts: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    vision_encoder.load(str(parts / "siglip"), dtype=torch.float32)
    assert "UNEXPECTED" not in caplog.text + capfd.readouterr().err


def test_the_grid_of_so400m_at_384_has_27_patches_a_side() -> None:
    from transformers import SiglipVisionConfig

    assert vision_encoder.grid_side(SiglipVisionConfig(image_size=384, patch_size=14)) == 27


@pytest.mark.parametrize("config", [Siglip2Config, Siglip2VisionConfig])
def test_a_naflex_model_is_an_error(config: type, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"model.vision: .* is a NaFlex SigLIP 2"):
        vision_encoder.load(str(tmp_path), dtype=torch.float32)


def test_missing_weights_are_an_error(parts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((parts / "siglip" / "config.json").read_bytes())
    weights = load_file(parts / "siglip" / "model.safetensors")
    incomplete = {key: value for key, value in weights.items() if "layers.2.mlp" not in key}
    save_file(incomplete, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"model.vision: .* lacks weights of the vision encoder, such as encoder.layers.2.mlp"):
        vision_encoder.load(str(tmp_path), dtype=torch.float32)


@pytest.mark.parametrize(
    "images", [1, vision_encoder.COMPILED_BATCH_SIZE, vision_encoder.COMPILED_BATCH_SIZE + 1, 3 * vision_encoder.COMPILED_BATCH_SIZE - 1]
)
def test_compiled_layers_always_see_as_many_images_and_give_the_same_features(parts: Path, images: int) -> None:
    tower = vision_encoder.load(str(parts / "siglip"), dtype=torch.float32)
    pixels = torch.randn(images, 3, 96, 96, generator=torch.Generator().manual_seed(images))
    wanted = vision_encoder.encode(tower, pixels, -2)
    seen: list[int] = []
    for layer in tower.encoder.layers:
        layer.register_forward_pre_hook(lambda _layer, args: seen.append(len(args[0])))
    assert torch.equal(vision_encoder.encode(tower, pixels, -2), wanted) and set(seen) == {images}
    seen.clear()
    for layer in tower.encoder.layers:
        layer.compile(backend="eager")
    features = vision_encoder.encode(tower, pixels, -2)
    torch.testing.assert_close(features, wanted)
    assert features.shape == wanted.shape and set(seen) == {vision_encoder.COMPILED_BATCH_SIZE}


def test_layers_run_in_inference_mode_but_the_features_are_an_ordinary_tensor(parts: Path) -> None:
    tower = vision_encoder.load(str(parts / "siglip"), dtype=torch.float32)
    modes: list[bool] = []
    tower.encoder.layers[0].register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    assert not vision_encoder.encode(tower, PIXELS, -2).is_inference()
    assert modes == [True]


def test_sharded_weights_run_without_inference_mode(parts: Path, tmp_path: Path) -> None:
    """FSDP2 gathers weights in place, which raises an error in inference mode."""
    tower = vision_encoder.load(str(parts / "siglip"), dtype=torch.float32)
    expected = vision_encoder.encode(tower, PIXELS, -2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        for layer in tower.encoder.layers:
            fully_shard(layer)
        torch.testing.assert_close(vision_encoder.encode(tower, PIXELS, -2), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_the_first_patch_can_be_dropped(tower: vision_encoder.VisionTower) -> None:
    full, dropped = vision_encoder.VisionEncoder(tower, -2), vision_encoder.VisionEncoder(tower, -2, drop_first_patch=True)
    assert torch.equal(dropped(PIXELS), full(PIXELS)[:, 1:])
    assert [encoder(PIXELS).shape[1:] for encoder in (full, dropped)] == [full.shape, dropped.shape]


def test_the_digest_changes_with_everything_that_the_features_depend_on(parts: Path) -> None:
    def digest(dtype: torch.dtype = torch.float32, layer: vision_encoder.FeatureLayer = -2, drop: bool = False, change: float = 0.0) -> str:
        tower = vision_encoder.load(str(parts / "siglip"), dtype=dtype)
        tower.encoder.layers[1].mlp.fc1.bias[7] += change
        return vision_encoder.VisionEncoder(tower, layer, drop).digest()

    assert digest() == digest() == digest(layer=3)
    others = [digest(torch.bfloat16), digest(layer=-1), digest(layer="last_hidden_state"), digest(drop=True), digest(change=1e-3)]
    assert len({digest(), *others}) == 6
