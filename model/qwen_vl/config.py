"""Settings of Qwen vision-language models, tuned further."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from config_schema import section
from model.family_config import FamilyConfig, ParamGroup
from visual.config import ModelNameOrPath


@section
class QwenVlConfig(FamilyConfig):
    """A Qwen2.5-VL or Qwen3-VL, in transformers' own classes."""

    base_models: ClassVar[tuple[str, ...]] = ("path",)
    groups: ClassVar[tuple[ParamGroup, ...]] = ("vision", "connector", "lora", "language")

    family: Literal["qwen_vl"]
    """The family."""
    path: ModelNameOrPath
    """Pre-trained model: folder or hub name."""
    min_pixels: Annotated[int, Field(ge=1)] | None = None
    """Images with fewer pixels are enlarged to about this many, in their aspect ratio; null = as the model's own image processor."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Images with more pixels are reduced to about this many; null = as the model's own image processor. An image token has 28 x 28
    pixels (Qwen2.5-VL) or 32 x 32 (Qwen3-VL)."""

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self
