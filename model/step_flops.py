"""FLOPs of a training step, from the shapes of a model's linear layers.

A frozen weight costs a forward pass and an input gradient, but no weight gradient.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs per weight and token: one multiply-add in the forward pass and one for each kind of gradient."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step per token, supervised token and image. Attention scores, norms and the recomputation of
    checkpointed activations are not counted, so the rates are a lower bound of what the device does."""

    per_token: float
    """Language model and its adapters."""
    per_supervised_token: float
    """Computed at supervised positions only: the output projection to the vocabulary and the last layer's MLP."""
    per_image: float
    """Vision encoder and connector, for each row of `pixel_values`: an image, or a patch in families whose images differ in size."""

    def flops(self, tokens: float, supervised: float, images: float) -> float:
        """FLOPs of a step over this many tokens, supervised tokens and images."""
        return self.per_token * tokens + self.per_supervised_token * supervised + self.per_image * images


@dataclass(frozen=True)
class PartNames:
    """Parts of module names that tell the vision encoder and the connector from the language model."""

    vision: tuple[str, ...]
    connector: tuple[str, ...]


LLAVA_NAMES = PartNames(("vision_tower",), ("multi_modal_projector",))


def count_step_flops(
    model: nn.Module, patches: float, vision_layers: int, tokens_per_image: float | Callable[[str], float], names: PartNames = LLAVA_NAMES
) -> StepFlops:
    """FLOPs of the linear layers of a vision-language model in training.

    Layers are classified by their names; what is neither vision encoder nor connector nor lm_head belongs to the language model.
    After the last attention, the language model runs at supervised positions only (see model.siglip_qwen.sparse_last_layer).

    Args:
        patches: Patches per row of `pixel_values` in the vision encoder.
        vision_layers: Number of vision layers that run.
        tokens_per_image: Image tokens per row of `pixel_values`, which is the number of positions the connector maps; or the number of
            positions that each of its layers maps, by name.
        names: How the parts are called.
    """
    last = max((_layer(LANGUAGE_LAYER, name) for name, _ in model.named_modules()), default=-1)
    per_token = per_supervised_token = per_image = 0.0
    for name, layer in model.named_modules():
        # From the feature sizes: a 4-bit tensor stores two weights per byte.
        weights = layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0
        unused = ".original_module" in name or _layer(VISION_LAYER, name) >= vision_layers
        if not weights or unused:
            continue
        trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        # A frozen weight below an adapter passes its gradient on.
        gradients = INPUT_GRADIENT + WEIGHT_GRADIENT if trained else INPUT_GRADIENT if ".base_layer" in name else 0
        if any(part in name for part in names.vision) and not any(part in name for part in names.connector):
            per_image += (FORWARD + gradients) * weights * patches
            continue
        cost = weights * (FORWARD + INPUT_GRADIENT + (WEIGHT_GRADIENT if trained else 0))
        if any(part in name for part in names.connector):
            per_image += cost * (tokens_per_image(name) if callable(tokens_per_image) else tokens_per_image)
        elif "lm_head" in name or (".mlp." in name and _layer(LANGUAGE_LAYER, name) == last):
            per_supervised_token += cost
        else:
            per_token += cost
    return StepFlops(per_token, per_supervised_token, per_image)


VISION_LAYER, LANGUAGE_LAYER = re.compile(r"vision_tower.*\.layers?\.(\d+)\."), re.compile(r"language_model\.layers\.(\d+)\.")


def _layer(kind: re.Pattern[str], name: str) -> int:
    """Index of the layer that a module belongs to, -1 when it belongs to none of this kind."""
    match = kind.search(name)
    return int(match[1]) if match else -1
