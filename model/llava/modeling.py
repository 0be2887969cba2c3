"""LLaVA models in transformers' own class, with the paths of their parameter groups."""

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedConfig

from errors import UsageError
from model.family import LoadOptions
from model.quantization import Quantization
from model.stock.stock_model import StockModel

LANGUAGE_MODEL = "model.language_model"


class StockLlava(StockModel):
    """A LLaVA, if the installed transformers computes its features as they were trained."""

    def load(self, key: str, path: str, quantization: Quantization, options: LoadOptions, **load_options: Any) -> Any:
        model = super().load(key, path, quantization, options, **load_options)
        if getattr(model.config.vision_config, "tie_last_hidden_states", False) and not _last_hidden_state_is_normed(model):
            raise UsageError(
                f"{key}: {path}: its image features are taken after the final norm (vision_config.tie_last_hidden_states). The installed "
                "transformers does not support this setting and would give other answers; a newer one is needed"
            )
        return model


LLAVA = StockLlava(
    lambda _: LlavaForConditionalGeneration,
    model_types=("llava",),
    expected="a LLaVA",
    group_paths={
        "vision": ("model.vision_tower.",),
        "connector": ("model.multi_modal_projector.",),
        "language": (f"{LANGUAGE_MODEL}.", "lm_head."),
    },
    not_quantised=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    may_be_missing=lambda name: ".head." in name,  # the pooling head is not used
)


def tokens_per_image(config: PreTrainedConfig) -> int:
    """Image tokens of an image: its patches, with the class token of the encoder unless the config drops the first position."""
    vision = config.vision_config
    has_class_token = "siglip" not in vision.model_type
    positions = (vision.image_size // vision.patch_size) ** 2 + has_class_token
    return int(positions - (config.vision_feature_select_strategy == "default"))


@torch.no_grad()
def _last_hidden_state_is_normed(model: LlavaForConditionalGeneration) -> bool:
    """Whether the last hidden state of the vision tower is taken after its final norm."""
    tower, side = model.model.vision_tower, model.config.vision_config.image_size
    outputs = tower(torch.zeros(1, 3, side, side, dtype=tower.dtype, device=tower.device), output_hidden_states=True)
    return torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
