"""Vision encoders of transformers (SigLIP, CLIP, DINOv2, DINOv3): pixel values to patch features of one layer.

Runs only the layers up to the chosen one; without autograd, unless it is trained.

Shapes: N images, P patches, D hidden size, H height and W width in pixels.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel, SiglipVisionModel

from errors import UsageError
from visual.pretrained_model import load_image_processor, load_model, output_size, read_config

FeatureLayer = int | Literal["last_hidden_state"]
"""Index into hidden_states (0 = embeddings, -1 = last layer before the final norm), or the state after the final norm."""

COMPILED_BATCH_SIZE = 4
"""Batch size of compiled layers, in images. A packed row of 16,384 tokens has about 19 images of 729 tokens: batches of four
need one or two padding images, batches of eight four or five. 4 x 729 = 2,916 rows are enough for an efficient matrix product."""


class VisionTower(SiglipVisionModel):
    """SigLIP's vision encoder. Loads from a checkpoint of the whole model without warnings about its other weights."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"text_model\.", r"logit_(scale|bias)", r"head\."]


@dataclass(frozen=True)
class Architecture:
    """Where a vision encoder of transformers keeps its parts.

    Args:
        class_name: Class of the vision encoder alone.
        layers: Name of the list of its layers.
        norm: Name of the norm after the last layer; empty where `last_hidden_state` is before it.
        first_norm: Name of a norm before the first layer, if there is one.
        has_class_token: Whether a class token, and registers if there are any, come before the patches. They are left out.
        rotary: Name of the module with its rotary position embeddings, if it has any.
    """

    class_name: str
    layers: str = "encoder.layers"
    norm: str = ""
    first_norm: str = ""
    has_class_token: bool = True
    rotary: str = ""


ARCHITECTURES = {
    "siglip_vision_model": Architecture("SiglipVisionModel", norm="post_layernorm", has_class_token=False),
    "clip_vision_model": Architecture("CLIPVisionModel", first_norm="pre_layrnorm"),
    "dinov2": Architecture("Dinov2Model", layers="encoder.layer", norm="layernorm"),
    "dinov2_with_registers": Architecture("Dinov2WithRegistersModel", layers="encoder.layer", norm="layernorm"),
    "dinov3_vit": Architecture("DINOv3ViTModel", layers="model.layer", norm="norm", rotary="rope_embeddings"),
}
"""By the `model_type` of the vision encoder's config."""

EXPECTED = "a SigLIP or SigLIP 2 of fixed resolution, a CLIP, a DINOv2 or a DINOv3 ViT"


@functools.cache
def tower_class(model_type: str) -> type[PreTrainedModel]:
    """The class of a vision encoder alone, which loads from a checkpoint of the whole model without warnings about its other weights."""
    if model_type == "siglip_vision_model":
        return VisionTower
    base = getattr(transformers, ARCHITECTURES[model_type].class_name)
    others = [r"text_model\.", r"logit_scale", r"(text|visual)_projection\."]
    # transformers renames the weights of a whole CLIP only for a class of its own.
    attributes = {"_keys_to_ignore_on_load_unexpected": others, "__module__": base.__module__}
    loaded: type[PreTrainedModel] = type(base.__name__, (base,), attributes)
    return loaded


def vision_config(name: str) -> PreTrainedConfig:
    """Configuration of a vision encoder; loads no weights.

    name: folder or hub name of the whole model or of its vision encoder. Raises UsageError when it cannot be loaded, is of
    another model type, or has no square patches and images.
    """
    config = read_config("model.vision", name)
    if config.model_type in ("siglip2", "siglip2_vision_model"):
        raise UsageError(f"model.vision: {name} is a NaFlex SigLIP 2 (variable resolution); expected {EXPECTED}")
    vision: PreTrainedConfig = getattr(config, "vision_config", config)
    if vision.model_type not in ARCHITECTURES:
        raise UsageError(f"model.vision: {name} is a {config.model_type} model; expected {EXPECTED}")
    if not (isinstance(vision.image_size, int) and isinstance(vision.patch_size, int)):
        raise UsageError(f"model.vision: {name} has image_size {vision.image_size}; expected one number (square images)")
    if vision.model_type == "siglip_vision_model":
        # The pooling head is not used.
        vision.vision_use_head = False
    return vision


def image_side(name: str, config: PreTrainedConfig) -> int:
    """Side in pixels of the images that an encoder gets: its image processor's, which may differ from what it was pre-trained with.

    Raises UsageError when the image processor cannot be loaded, or gives images that are not squares of whole patches.
    """
    if config.model_type == "siglip_vision_model":
        return int(config.image_size)
    height, width = output_size(load_image_processor("model.vision", name))
    if height != width or height % int(config.patch_size):
        raise UsageError(
            f"model.vision: the image processor of {name} gives {width} x {height} pixels; expected a square of whole patches of "
            f"{config.patch_size} pixels"
        )
    if config.model_type == "clip_vision_model" and height != config.image_size:
        raise UsageError(f"model.vision: the image processor of {name} gives {height} pixels a side, its encoder takes {config.image_size}")
    return height


def grid_side(config: PreTrainedConfig, side: int | None = None) -> int:
    """Patches along one side of an image. side: of the image in pixels; None for that of pre-training."""
    return int(side or config.image_size) // int(config.patch_size)


def num_prefix_tokens(config: PreTrainedConfig) -> int:
    """Positions before those of the patches: a class token and registers."""
    return 1 + int(getattr(config, "num_register_tokens", 0)) if ARCHITECTURES[config.model_type].has_class_token else 0


def architecture(tower: nn.Module) -> Architecture:
    config: Any = tower.config
    return ARCHITECTURES[config.model_type]


def layers_of(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of an encoder."""
    layers: Any = _inner(tower).get_submodule(architecture(tower).layers)
    return cast(nn.ModuleList, layers)


def check_feature_layer(config: PreTrainedConfig, layer: FeatureLayer) -> None:
    """Raise UsageError when the vision encoder has no such hidden state."""
    states = config.num_hidden_layers + 1
    if isinstance(layer, int) and not -states <= layer < states:
        raise UsageError(
            f"model.vision_feature_layer: {layer} is out of range; the vision encoder has hidden states {-states} to {states - 1}"
        )


def load(name: str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the vision encoder, frozen and in eval mode. Raises UsageError as `vision_config` does, and when weights are missing."""
    config = vision_config(name)
    tower = load_model("model.vision", name, tower_class(config.model_type), part="vision encoder", config=config, dtype=dtype)
    frozen: PreTrainedModel = tower.to(device).requires_grad_(False).eval()
    return frozen


def without_weights(config: PreTrainedConfig, **dtype: torch.dtype) -> PreTrainedModel:
    """The vision encoder of a config, newly initialised; on the meta device where that is the default. dtype: in place of the config's."""
    tower: PreTrainedModel = tower_class(config.model_type)._from_config(config, **dtype)
    return tower


def encode(tower: PreTrainedModel, pixels: torch.Tensor, layer: FeatureLayer) -> torch.Tensor:
    """Patch features [N, P, D] of pixel values [N, 3, H, W].

    Equals the model's `hidden_states[layer]` (or `last_hidden_state`) at the patches; later layers are not computed. Compiled layers get
    batches of COMPILED_BATCH_SIZE images, the last one padded with zeros, so that their shapes never change; other layers
    get all images at once. Of a frozen encoder, the result is an ordinary tensor, not an inference tensor, because the connector saves
    it for its backward pass.
    """
    vision_model, kind, layers = _inner(tower), architecture(tower), layers_of(tower)
    depth = num_layers_for(layer, len(layers))
    batch_size = COMPILED_BATCH_SIZE if any(block._compiled_call_impl is not None for block in layers[:depth]) else max(len(pixels), 1)
    trained = torch.is_grad_enabled() and is_trained(tower)
    # Gathering sharded weights (FSDP, ZeRO-3) changes tensors in place, which inference mode forbids.
    frozen_mode = torch.no_grad if _is_sharded(tower) else torch.inference_mode
    with torch.enable_grad() if trained else frozen_mode():
        parts = []
        for part in pixels.split(batch_size):
            part = _pad_batch(part, batch_size)
            features = vision_model.embeddings(part)
            if kind.first_norm:
                features = vision_model.get_submodule(kind.first_norm)(features)
            positions = {"position_embeddings": vision_model.get_submodule(kind.rotary)(part)} if kind.rotary else {}
            for block in layers[:depth]:
                features = block(features, None, **positions)
            if kind.norm and layer == "last_hidden_state":
                features = vision_model.get_submodule(kind.norm)(features)
            parts.append(features)
    with torch.set_grad_enabled(trained):
        return torch.cat(parts)[: len(pixels), num_prefix_tokens(tower.config) :]


def is_trained(tower: nn.Module) -> bool:
    """Whether any of its weights, or of the adapters on it, is trained."""
    return any(weight.requires_grad for weight in tower.parameters())


def trained_parts(tower: nn.Module, layer: FeatureLayer, layers: int | Literal["all"]) -> list[str]:
    """Names of the modules of the encoder that its training trains: none of which the chosen features do not depend on.

    layers: the last n of the layers that run, or all with the embeddings.
    """
    inside, kind = "vision_model." if hasattr(tower, "vision_model") else "", architecture(tower)
    depth = num_layers_for(layer, len(layers_of(tower)))
    first = 0 if layers == "all" else max(0, depth - layers)
    below = ["embeddings", kind.first_norm] if layers == "all" else []
    above = [kind.norm] if layer == "last_hidden_state" else []
    return [inside + name for name in (*below, *(f"{kind.layers}.{i}" for i in range(first, depth)), *above) if name]


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
    """A vision encoder with the choice of features: pixel values [N, 3, H, W] to [N, P, D].

    layer: hidden state that is returned; drop_first_patch: leave out the first patch; side: of the images in pixels, None for that of
    pre-training.
    """

    tower: PreTrainedModel
    layer: FeatureLayer
    drop_first_patch: bool = False
    side: int | None = None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        features = encode(self.tower, pixels, self.layer)
        return features[:, 1:] if self.drop_first_patch else features

    @property
    def shape(self) -> tuple[int, int]:
        """P and D of the features of an image."""
        config = self.tower.config
        return grid_side(config, self.side) ** 2 - self.drop_first_patch, int(config.hidden_size)

    def digest(self) -> str:
        """SHA-256 of everything that the features depend on besides the pixels: settings and the loaded weights."""
        config = self.tower.config
        # Settings that the shapes of the weights do not determine.
        config_values = [config.model_type, config.hidden_act, config.layer_norm_eps, config.num_attention_heads]
        layer_settings = [num_layers_for(self.layer, config.num_hidden_layers), self.layer == "last_hidden_state", self.drop_first_patch]
        size = [] if self.side in (None, config.image_size) else [self.side]
        digest = hashlib.sha256(json.dumps([*config_values, *layer_settings, *size]).encode())
        for name, weight in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
