"""The settings `model` of a configuration: one class for each model family, told apart by `model.family`."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from model.blip2.config import Blip2Config
from model.llava.config import LlavaConfig
from model.qwen_vl.config import QwenVlConfig
from model.resnet_gpt2.config import ResnetGpt2Config
from model.siglip_qwen.config import SiglipQwenConfig

DEFAULT_FAMILY = "siglip_qwen"


def _family(value: Any) -> str:
    family = value.get("family", DEFAULT_FAMILY) if isinstance(value, dict) else getattr(value, "family", DEFAULT_FAMILY)
    return str(family)


ModelConfig = Annotated[
    Annotated[SiglipQwenConfig, Tag("siglip_qwen")]
    | Annotated[QwenVlConfig, Tag("qwen_vl")]
    | Annotated[Blip2Config, Tag("blip2")]
    | Annotated[LlavaConfig, Tag("llava")]
    | Annotated[ResnetGpt2Config, Tag("resnet_gpt2")],
    Discriminator(
        _family,
        custom_error_type="union_tag_family",
        custom_error_message="unknown family; expected siglip_qwen, qwen_vl, blip2, llava or resnet_gpt2",
    ),
]
"""A new family is one line here and a folder model/<family>/ with a module `family`."""
