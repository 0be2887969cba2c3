"""BLIP-2 as published, as a system to compare with: zero-shot, quantised or with a LoRA adapter; OPT or Flan-T5 as its language model."""

from pathlib import Path
from typing import Any

import peft
import torch

from answering.config import Blip2System
from answering.prompts import PromptPolicy
from answering.systems.family_answerer import FamilyAnswerer
from errors import UsageError, loading
from model.blip2.modeling import build
from model.blip2.processor import Blip2Processor
from model.family import LoadOptions
from model.processors.question_processor import QuestionPrompts


def load(system: Blip2System, device: torch.device | str, dtype: torch.dtype | None = None) -> FamilyAnswerer:
    """Load a configured system. Raises UsageError if it cannot be loaded, is of another family or lacks weights."""
    where = f"system {system.name}, path"
    question_prompts = QuestionPrompts(system.question_prompt, system.conversation_prompt, system.caption_prompt)
    processor = Blip2Processor.from_pretrained(where, system.path, question_prompts, max_length=None)
    model = build(where, system.path, system.quantization, LoadOptions(dtype, device), processor.image_token_id)
    if system.adapter is not None:
        model = with_adapter(model, system.adapter, f"system {system.name}, adapter")
    names = ("path", "quantization", "adapter", "question_prompt", "conversation_prompt", "caption_prompt")
    settings = {name: getattr(system, name) for name in names}
    return FamilyAnswerer(model.eval(), processor, PromptPolicy.from_config(system), settings, kind=system.kind)


def with_adapter(model: Any, folder: Path, where: str) -> Any:
    """The model with a LoRA adapter injected into its layers. Raises UsageError if the adapter was trained on another model.

    where: the configuration key for the message.
    """
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} does not exist")
    with loading(where, str(folder)):
        settings = peft.PeftConfig.from_pretrained(folder)
        if settings.peft_type != peft.PeftType.LORA:
            raise ValueError(f"it is a {settings.peft_type.value} adapter, LORA is expected")
        weights = peft.load_peft_weights(str(folder), device="cpu")
        try:
            adapted = peft.PeftModel.from_pretrained(model, folder)
        except RuntimeError as error:
            raise ValueError(f"its weights have other shapes: {error}") from error
    expected = peft.get_peft_model_state_dict(adapted)
    if wrong := sorted(expected.keys() ^ weights.keys()):
        raise UsageError(
            f"{where}: {folder} was trained on another model ({len(wrong)} weights are missing or left over, such as {wrong[0]})"
        )
    return adapted.get_base_model()
