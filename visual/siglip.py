"""The frozen SigLIP encoder: pixels to patch features.

In: pixel values [pictures, 3, height, width]. Out: features [pictures, patches, width] of the chosen layer, computed
outside autograd and with no more layers than that takes. Called by the model; sizes are readable without any weights.
"""

from typing import Any, ClassVar, Literal

import torch
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel

from errors import UsageError, loading

FeatureLayer = int | Literal["last_hidden_state"]
"""A place in hidden_states (0 = embeddings, -1 = last layer, before the final norm), or the state after the final norm."""


class VisionTower(SiglipVisionModel):
    """The encoder alone: what else a checkpoint of the whole SigLIP holds is left out without a word."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"text_model\.", r"logit_(scale|bias)", r"head\."]


def vision_config(name: str) -> SiglipVisionConfig:
    """Sizes of a SigLIP or SigLIP 2 of fixed resolution: a folder or hub name of the whole model or its vision half.

    Raises UsageError when it cannot be loaded, is of another family, or has no fixed square resolution.
    """
    with loading("model.vision", name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise UsageError(f"model.vision: {name} is a NaFlex SigLIP 2 (variable resolution); a fixed-resolution SigLIP is expected")
    vision = getattr(config, "vision_config", config)
    if not isinstance(vision, SiglipVisionConfig):
        raise UsageError(f"model.vision: {name} is a {config.model_type} model; a SigLIP or SigLIP 2 of fixed resolution is expected")
    if not (isinstance(vision.image_size, int) and isinstance(vision.patch_size, int)):
        raise UsageError(f"model.vision: {name} has pictures of {vision.image_size} pixels; one number (a square) is expected")
    # The pooling head is never used here.
    vision.vision_use_head = False
    return vision


def grid_side(config: SiglipVisionConfig) -> int:
    """Patches along one side of a picture."""
    return int(config.image_size) // int(config.patch_size)


def check_feature_layer(config: SiglipVisionConfig, layer: FeatureLayer) -> None:
    """Raise UsageError when the encoder has no such hidden state."""
    states = config.num_hidden_layers + 1
    if isinstance(layer, int) and not -states <= layer < states:
        raise UsageError(f"model.feature_layer: {layer} is out of range; the vision encoder has hidden states {-states} to {states - 1}")


def load(name: str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> VisionTower:
    """The encoder, frozen and in eval mode. Raises UsageError like `vision_config`."""
    config = vision_config(name)
    with loading("model.vision", name):
        tower, report = VisionTower.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise UsageError(f"model.vision: {name} lacks weights of the encoder, such as {min(report['missing_keys'])}")
    frozen: VisionTower = tower.to(device).requires_grad_(False).eval()
    return frozen


@torch.no_grad()
def encode(tower: SiglipVisionModel, pixels: torch.Tensor, layer: FeatureLayer) -> torch.Tensor:
    """Patch features [pictures, patches, width] of pixels [pictures, 3, height, width].

    Equals the tower's own `hidden_states[layer]` (or its `last_hidden_state`); layers above are not computed. The result is
    an ordinary tensor without history rather than an inference tensor, since the projector saves it for its backward pass.
    """
    trunk: Any = getattr(tower, "vision_model", tower)
    layers = trunk.encoder.layers
    depth = len(layers) if layer == "last_hidden_state" else layer % (len(layers) + 1)
    features: torch.Tensor = trunk.embeddings(pixels)
    for block in layers[:depth]:
        features = block(features, None)
    return trunk.post_layernorm(features) if layer == "last_hidden_state" else features
