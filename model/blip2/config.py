"""Settings of BLIP-2, tuned further."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from config_schema import section
from model.family_config import FamilyConfig, LoraConfig, ParamGroup, TextTemplate
from visual.config import ModelNameOrPath

QUESTION_PROMPT, CONVERSATION_PROMPT, CAPTION_PROMPT = "Question: {} Short answer:", "Question: {} Answer:", "a photo of"


@section
class Blip2LoraConfig(LoraConfig):
    """LoRA on the query and value projections of the language model."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 32
    """The LoRA update is scaled by lora_alpha / r."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    """Linear layers of the language model by their names in OPT, which stand for those of Flan-T5, too (q_proj for its q)."""


@section
class Blip2Config(FamilyConfig):
    """A BLIP-2 with OPT or Flan-T5, in transformers' own class. It takes one image per question."""

    base_models: ClassVar[tuple[str, ...]] = ("path",)
    groups: ClassVar[tuple[ParamGroup, ...]] = ("vision", "connector", "lora", "language")

    family: Literal["blip2"]
    """The family."""
    path: ModelNameOrPath
    """Pre-trained model: folder or hub name."""
    max_length: Annotated[int, Field(ge=16)] = 256
    """Maximum length of a sample in tokens, image tokens included."""
    system_prompt: None = None
    """There is none."""
    lora: Blip2LoraConfig | None = Blip2LoraConfig()
    """LoRA adapters; null for none."""
    question_prompt: TextTemplate = QUESTION_PROMPT
    """Prompt of a short-answer question, which replaces {}."""
    conversation_prompt: TextTemplate = CONVERSATION_PROMPT
    """Prompt of any other question, which replaces {}."""
    caption_prompt: str = CAPTION_PROMPT
    """Beginning of a caption, used instead of the instruction; may be empty."""
