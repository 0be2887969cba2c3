"""The SigLIP vision encoder: pixel values to patch features of one layer.

Runs only the layers up to the chosen one; without autograd, unless it is trained.

Shapes: N images, P patches, D hidden size, H height and W width in pixels.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from errors import UsageError
from visual.pretrained_model import load_model, read_config

FeatureLayer = int | Literal["last_hidden_state"]
"""Index into hidden_states (0 = embeddings, -1 = last layer before the final norm), or the state after the final norm."""

COMPILED_BATCH_SIZE = 4
"""Batch size of compiled layers, in images. A packed row of 16,384 tokens has about 19 images of 729 tokens: batches of four
need one or two padding images, batches of eight four or five. 4 x 729 = 2,916 rows are enough for an efficient matrix product."""


class VisionTower(SiglipVisionModel):
    """SigLIP's vision encoder. Loads from a checkpoint of the whole model without warnings about its other weights."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"text_model\.", r"logit_(scale|bias)", r"head\."]


def vision_config(name: str) -> SiglipVisionConfig:
    """Configuration of the vision encoder of a SigLIP or SigLIP 2 of fixed resolution; loads no weights.

    name: folder or hub name of the whole model or of its vision encoder. Raises UsageError when it cannot be loaded, is of
    another model type, or has no fixed square resolution.
    """
    config = read_config("model.vision", name)
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise UsageError(f"model.vision: {name} is a NaFlex SigLIP 2 (variable resolution); expected a SigLIP of fixed resolution")
    vision = getattr(config, "vision_config", config)
    if not isinstance(vision, SiglipVisionConfig):
        raise UsageError(f"model.vision: {name} is a {config.model_type} model; expected a SigLIP or SigLIP 2 of fixed resolution")
    if not (isinstance(vision.image_size, int) and isinstance(vision.patch_size, int)):
        raise UsageError(f"model.vision: {name} has image_size {vision.image_size}; expected one number (square images)")
    # The pooling head is not used.
    vision.vision_use_head = False
    return vision


def grid_side(config: SiglipVisionConfig) -> int:
    """Patches along one side of an image."""
    return int(config.image_size) // int(config.patch_size)


def check_feature_layer(config: SiglipVisionConfig, layer: FeatureLayer) -> None:
    """Raise UsageError when the vision encoder has no such hidden state."""
    states = config.num_hidden_layers + 1
    if isinstance(layer, int) and not -states <= layer < states:
        raise UsageError(
            f"model.vision_feature_layer: {layer} is out of range; the vision encoder has hidden states {-states} to {states - 1}"
        )


def load(name: str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> VisionTower:
    """Load the vision encoder, frozen and in eval mode. Raises UsageError as `vision_config` does, and when weights are missing."""
    tower = load_model("model.vision", name, VisionTower, part="vision encoder", config=vision_config(name), dtype=dtype)
    frozen: VisionTower = tower.to(device).requires_grad_(False).eval()
    return frozen


def encode(tower: SiglipVisionModel, pixels: torch.Tensor, layer: FeatureLayer) -> torch.Tensor:
    """Patch features [N, P, D] of pixel values [N, 3, H, W].

    Equals the model's `hidden_states[layer]` (or `last_hidden_state`); later layers are not computed. Compiled layers get
    batches of COMPILED_BATCH_SIZE images, the last one padded with zeros, so that their shapes never change; other layers
    get all images at once. Of a frozen encoder, the result is an ordinary tensor, not an inference tensor, because the connector saves
    it for its backward pass.
    """
    vision_model = _inner(tower)
    layers = vision_model.encoder.layers
    depth = num_layers_for(layer, len(layers))
    batch_size = COMPILED_BATCH_SIZE if any(block._compiled_call_impl is not None for block in layers[:depth]) else max(len(pixels), 1)
    trained = torch.is_grad_enabled() and is_trained(tower)
    # Gathering sharded weights (FSDP, ZeRO-3) changes tensors in place, which inference mode forbids.
    frozen_mode = torch.no_grad if _is_sharded(tower) else torch.inference_mode
    with torch.enable_grad() if trained else frozen_mode():
        parts = []
        for part in pixels.split(batch_size):
            features = vision_model.embeddings(_pad_batch(part, batch_size))
            for block in layers[:depth]:
                features = block(features, None)
            parts.append(vision_model.post_layernorm(features) if layer == "last_hidden_state" else features)
    with torch.set_grad_enabled(trained):
        return torch.cat(parts)[: len(pixels)]


def is_trained(tower: nn.Module) -> bool:
    """Whether any of its weights, or of the adapters on it, is trained."""
    return any(weight.requires_grad for weight in tower.parameters())


def trained_parts(tower: nn.Module, layer: FeatureLayer, layers: int | Literal["all"]) -> list[str]:
    """Names of the modules of the encoder that its training trains: none of which the chosen features do not depend on.

    layers: the last n of the layers that run, or all with the embeddings.
    """
    inside = "vision_model." if hasattr(tower, "vision_model") else ""
    depth = num_layers_for(layer, len(_inner(tower).encoder.layers))
    first = 0 if layers == "all" else max(0, depth - layers)
    names = ["embeddings"] if layers == "all" else []
    names += [f"encoder.layers.{i}" for i in range(first, depth)]
    return [inside + name for name in (*names, *(["post_layernorm"] if layer == "last_hidden_state" else []))]


def _inner(tower: nn.Module) -> Any:
    return getattr(tower, "vision_model", tower)


def num_layers_for(layer: FeatureLayer, layers: int) -> int:
    """Number of layers to run to obtain a hidden state. layers: number of layers of the encoder."""
    return layers if layer == "last_hidden_state" else layer % (layers + 1)


def _is_sharded(tower: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in tower.parameters())


def _pad_batch(pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
    missing = max(batch_size - len(pixels), 0)
    return torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels


@dataclass(frozen=True)
class VisionEncoder:
    """A frozen vision encoder with the choice of features: pixel values [N, 3, H, W] to [N, P, D].

    layer: hidden state that is returned; drop_first_patch: leave out the first patch.
    """

    tower: SiglipVisionModel
    layer: FeatureLayer
    drop_first_patch: bool = False

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        features = encode(self.tower, pixels, self.layer)
        return features[:, 1:] if self.drop_first_patch else features

    @property
    def shape(self) -> tuple[int, int]:
        """P and D of the features of an image."""
        config = self.tower.config
        return grid_side(config) ** 2 - self.drop_first_patch, int(config.hidden_size)

    def digest(self) -> str:
        """SHA-256 of everything that the features depend on besides the pixels: settings and the loaded weights."""
        config = self.tower.config
        # Settings that the shapes of the weights do not determine.
        config_values = [config.model_type, config.hidden_act, config.layer_norm_eps, config.num_attention_heads]
        layer_settings = [num_layers_for(self.layer, config.num_hidden_layers), self.layer == "last_hidden_state", self.drop_first_patch]
        digest = hashlib.sha256(json.dumps([*config_values, *layer_settings]).encode())
        for name, weight in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
