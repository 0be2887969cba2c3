"""Settings of models in transformers' LLaVA layout, tuned further."""

from typing import ClassVar, Literal

from config_schema import section
from model.family_config import FamilyConfig, ParamGroup
from visual.config import ModelNameOrPath


@section
class LlavaConfig(FamilyConfig):
    """A LLaVA (vision encoder, MLP, language model) in transformers' own class: LLaVA-1.5, LLaVA-Interleave, or an export of ours."""

    base_models: ClassVar[tuple[str, ...]] = ("path",)
    groups: ClassVar[tuple[ParamGroup, ...]] = ("vision", "connector", "lora", "language")

    family: Literal["llava"]
    """The family."""
    path: ModelNameOrPath
    """Pre-trained model: folder or hub name."""
