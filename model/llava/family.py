"""Models of the LLaVA layout as a family: transformers' own class, LoRA by PEFT.

Shapes: B samples, T tokens, S supervised positions, V vocabulary size.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from transformers import PreTrainedModel

from dataset.sample import Prompts
from model.family import LoadOptions, read_model_config
from model.family_config import ParamGroup
from model.llava.config import LlavaConfig
from model.llava.modeling import LANGUAGE_MODEL, MODEL_TYPE, build, build_without_weights
from model.llava.processor import LlavaProcessor
from model.lora import language_lora_config
from model.param_groups import unwrapped
from model.processors.sample_processor import PROCESSOR_SETTINGS_FILE
from model.quantization import Quantization
from model.step_flops import StepFlops, count_step_flops
from model.stock.stock_family import StockFamily, logits_at, zero_through


class LlavaFamily(StockFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "llava"
    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig
    whole_model_types: ClassVar[frozenset[str]] = frozenset((MODEL_TYPE,))

    def processor(self, config: LlavaConfig, prompts: Prompts | None = None) -> LlavaProcessor:
        return LlavaProcessor.from_pretrained(
            "model.path", config.path, max_length=config.max_length, system_prompt=config.system_prompt, prompts=prompts or {}
        )

    def load_processor(self, folder: Path) -> LlavaProcessor:
        """The processor of a checkpoint, of a whole model that we exported, or of a published one. Raises UsageError."""
        if read_model_config(folder).get("model_type") != MODEL_TYPE or (folder / PROCESSOR_SETTINGS_FILE).is_file():
            return LlavaProcessor.load(folder)
        return LlavaProcessor.from_pretrained("checkpoint", str(folder), max_length=None, prompts=None)

    def load_base(self, config: LlavaConfig, processor: Any, options: LoadOptions) -> PreTrainedModel:
        del processor
        return build("model.path", config.path, config.quantization, options)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> PreTrainedModel:
        return build("checkpoint", str(folder), quantization, options)

    def shape(self, config: LlavaConfig, processor: Any) -> PreTrainedModel:
        del processor
        return build_without_weights("model.path", config.path)

    def lora_config(self, model: Any, config: LlavaConfig, run_groups: Collection[ParamGroup]) -> peft.LoraConfig:
        """Adapters go on the language model. A connector that the run trains is saved with them, so that stock PEFT loads both."""
        assert config.lora is not None
        saved = ["multi_modal_projector"] if "connector" in run_groups else None
        return language_lora_config(model.model.language_model, LANGUAGE_MODEL, config.lora, saved)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        names = ("input_ids", "attention_mask", *(("pixel_values",) if len(inputs["pixel_values"]) else ()))
        return logits_at(model, {name: inputs[name] for name in names}, supervised)

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        loss = super().loss(model, inputs, num_items)
        return loss if len(inputs["pixel_values"]) else loss + zero_through(model, ("vision_tower", "multi_modal_projector"), loss.device)

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """Per image."""
        del features_cached
        config = unwrapped(model).config
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        layer = config.vision_feature_layer
        depth = vision.num_hidden_layers if not isinstance(layer, int) else layer % (vision.num_hidden_layers + 1)
        return count_step_flops(model, patches, depth, patches)


FAMILY = LlavaFamily()
