"""Qwen2.5-VL and Qwen3-VL in transformers' own classes, with the paths of their parameter groups."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from model.param_groups import GroupPaths
from model.stock.stock_model import StockModel

CLASSES: dict[str, Any] = {"qwen3_vl": Qwen3VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
"""Class of each `model_type`."""

LANGUAGE_MODEL = "model.language_model"

GROUP_PATHS: GroupPaths = {
    "connector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "vision": ("model.visual.",),
    "language": (f"{LANGUAGE_MODEL}.", "lm_head."),
}
"""The connector is the merger, which makes word embeddings of patches, with those of Qwen3-VL's intermediate layers."""


def _class(config: PreTrainedConfig) -> Any:
    return CLASSES[config.model_type]


QWEN_VL = StockModel(_class, CLASSES, "a Qwen2.5-VL or Qwen3-VL", GROUP_PATHS, not_quantised=["lm_head", "model.visual"])
