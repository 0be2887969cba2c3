"""Qwen2.5-VL and Qwen3-VL as a family: transformers' own classes, LoRA by PEFT.

Shapes: B samples, T tokens, S supervised positions, V vocabulary size.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dataset.sample import Prompts
from errors import UsageError
from model.family import Collate, LoadOptions, read_model_config
from model.family_config import ParamGroup
from model.lora import language_lora_config
from model.param_groups import unwrapped
from model.processors.sample_processor import PROCESSOR_SETTINGS_FILE
from model.quantization import Quantization
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.modeling import CLASSES, LANGUAGE_MODEL, build, build_without_weights, read_config
from model.qwen_vl.processor import QwenVlProcessor
from model.step_flops import PartNames, StepFlops, count_step_flops
from model.stock.stock_family import NOT_MODEL_INPUTS, StockFamily, logits_at, zero_through

PART_NAMES = PartNames(("model.visual.",), (".merger.", ".deepstack_merger_list."))


class QwenVlFamily(StockFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "qwen_vl"
    config_class: ClassVar[type[QwenVlConfig]] = QwenVlConfig
    whole_model_types: ClassVar[frozenset[str]] = frozenset(CLASSES)

    def processor(self, config: QwenVlConfig, prompts: Prompts | None = None) -> QwenVlProcessor:
        return QwenVlProcessor.from_pretrained(
            "model.path",
            config.path,
            max_length=config.max_length,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            system_prompt=config.system_prompt,
            prompts=prompts,
        )

    def load_processor(self, folder: Path) -> QwenVlProcessor:
        """The processor of a checkpoint, of a whole model that we exported, or of a published one. Raises UsageError."""
        if read_model_config(folder).get("model_type") not in CLASSES or (folder / PROCESSOR_SETTINGS_FILE).is_file():
            return QwenVlProcessor.load(folder)
        limit = _positions(read_config("checkpoint", str(folder)))
        return QwenVlProcessor.from_pretrained("checkpoint", str(folder), max_length=limit)

    def load_base(self, config: QwenVlConfig, processor: Any, options: LoadOptions) -> PreTrainedModel:
        del processor
        return build("model.path", config.path, config.quantization, options)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> PreTrainedModel:
        return build("checkpoint", str(folder), quantization, options)

    def load_pretrained(self, where: str, settings: Mapping[str, Any], options: LoadOptions) -> tuple[PreTrainedModel, QwenVlProcessor]:
        """Implements model.family.PretrainedFamily. With `max_memory` the model is split over devices, the CPU and offload_folder."""
        key, path = f"{where}path", settings["path"]
        config = read_config(key, path)
        if config.model_type != settings["kind"]:
            raise UsageError(f"{key}: {path} is a {config.model_type} model, the system's kind says {settings['kind']}")
        processor = QwenVlProcessor.from_pretrained(key, path, max_length=_positions(config))
        split: dict[str, Any] = {}
        if settings["max_memory"] is not None:
            memory = {int(name) if name.isdigit() else name: size for name, size in settings["max_memory"].items()}
            split = {"device_map": "auto", "max_memory": memory, "offload_folder": settings["offload_folder"]}
        return build(key, path, settings["quantization"], options, **split), processor

    def shape(self, config: QwenVlConfig, processor: Any) -> PreTrainedModel:
        del processor
        return build_without_weights("model.path", config.path)

    def lora_config(self, model: Any, config: QwenVlConfig, run_groups: Collection[ParamGroup]) -> peft.LoraConfig:
        """Adapters go on the language model. A merger that the run trains is saved with them, so that stock PEFT loads both."""
        assert config.lora is not None
        saved = _merger_names(model) if "connector" in run_groups else None
        return language_lora_config(model.model.language_model, LANGUAGE_MODEL, config.lora, saved)

    def collator(self, processor: QwenVlProcessor, collate: Collate) -> Collate:
        return ImageTypeCollator(collate, processor.image_token_id)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        kept = {key: value for key, value in inputs.items() if key not in NOT_MODEL_INPUTS}
        if not len(inputs["image_grid_thw"]):
            kept = {key: value for key, value in kept.items() if key not in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
        return logits_at(model, kept, supervised)

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        loss = super().loss(model, inputs, num_items)
        return loss if len(inputs["image_grid_thw"]) else loss + zero_through(model, (".visual.",), loss.device)

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """Per patch: a row of pixel_values."""
        del features_cached
        merged = unwrapped(model).config.vision_config.spatial_merge_size ** 2
        return count_step_flops(model, 1, 1, 1 / merged, PART_NAMES)


@dataclass(frozen=True)
class ImageTypeCollator:
    """Adds mm_token_type_ids [B, T] to a batch: 1 at image tokens, which multimodal positions are computed from."""

    collate: Collate
    image_token_id: int

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        return {**batch, "mm_token_type_ids": (batch["input_ids"] == self.image_token_id).int()}


def _positions(config: PreTrainedConfig) -> int:
    """Most tokens of a sample that the language model can take."""
    return int(config.get_text_config(decoder=True).max_position_embeddings)


def _merger_names(model: Any) -> list[str]:
    """Names of the modules of the connector. PEFT takes no ModuleList, so its members are named."""
    return ["merger", *(f"deepstack_merger_list.{i}" for i in range(len(getattr(model.model.visual, "deepstack_merger_list", ()))))]


FAMILY = QwenVlFamily()
