"""Qwen2.5-VL and Qwen3-VL as a family: transformers' own classes, LoRA by PEFT.

Shapes: B samples, T tokens, S supervised positions, V vocabulary size.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel, modeling_utils

from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.sample import Prompts
from errors import UsageError
from model.family import Collate, LoadOptions
from model.family_config import ParamGroup
from model.lora import language_lora_config
from model.param_groups import set_trainable, unwrapped
from model.quantization import Quantization
from model.qwen_vl import checkpoint
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.modeling import LANGUAGE_MODEL, build, build_without_weights
from model.qwen_vl.processor import QwenVlProcessor
from model.step_flops import PartNames, StepFlops, count_step_flops

PART_NAMES = PartNames(("model.visual.",), (".merger.", ".deepstack_merger_list."))

NOT_MODEL_INPUTS = ("labels", "sample_ids", "padded_right")
"""Keys of a batch that the stock classes do not take."""


class QwenVlFamily:
    """Implements model.family.Family."""

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
        return checkpoint.load_processor(folder)

    def build(self, config: QwenVlConfig, processor: QwenVlProcessor, options: LoadOptions) -> PreTrainedModel:
        del processor
        return build("model.path", config.path, config.quantization, options)

    def build_without_weights(self, config: QwenVlConfig, processor: QwenVlProcessor) -> PreTrainedModel:
        del processor
        return build_without_weights("model.path", config.path)

    def load(
        self,
        folder: Path,
        options: LoadOptions,
        *,
        quantization: Literal["as_trained"] | Quantization = "as_trained",
        trainable: bool = False,
    ) -> PreTrainedModel | PeftModel:
        return checkpoint.load(folder, options, quantization=quantization, trainable=trainable)

    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        checkpoint.save(model, folder, state)

    def settings(self, folder: Path) -> QwenVlConfig:
        return checkpoint.settings(folder)

    def configure_trainable(
        self, model: Any, config: QwenVlConfig, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]
    ) -> PreTrainedModel | PeftModel:
        """Adapters go on the language model. A merger that the run trains is saved with them, so that stock PEFT loads both."""
        if "lora" in train and not isinstance(model, PeftModel):
            if config.lora is None:
                raise UsageError("train.stages: lora cannot be trained while model.lora is null")
            saved = _merger_names(model) if "connector" in run_groups else None
            model = peft.get_peft_model(model, language_lora_config(model.model.language_model, LANGUAGE_MODEL, config.lora, saved))
        inner = unwrapped(model)
        inner.trained_groups = tuple(dict.fromkeys([*getattr(inner, "trained_groups", ()), *train]))
        inner.settings = config
        set_trainable(model, train)
        return model

    def fuse(self, model: Any) -> None:
        """There is nothing to fuse."""

    def limit_logits(self, model: Any, gib: float) -> None:
        """Logits are computed at supervised positions alone, in one piece."""

    def collator(self, processor: QwenVlProcessor, collate: Collate) -> Collate:
        return ImageTypeCollator(collate, processor.image_token_id)

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """The vocabulary matrix is multiplied at supervised positions only, where the installed transformers can do that."""
        labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised = labels != IGNORE_INDEX
        kept = {key: value for key, value in inputs.items() if key not in NOT_MODEL_INPUTS}
        if not len(inputs["image_grid_thw"]):
            kept = {key: value for key, value in kept.items() if key not in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
        if hasattr(modeling_utils, "slice_logits_to_keep"):
            logits = model(**kept, use_cache=False, logits_to_keep=supervised).logits
        else:
            logits = model(**kept, use_cache=False).logits[supervised]
        loss = functional.cross_entropy(logits.float(), labels[supervised], reduction="sum") / num_items
        return loss + _zero_through_vision(model, inputs)

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        if export_format != "merged":
            raise UsageError(f"--format {export_format}: a Qwen vision-language model has a layout of its own; use --format merged")
        checkpoint.export_merged(folder, out, dtype, data_report)
        return []

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


def _merger_names(model: Any) -> list[str]:
    """Names of the modules of the connector. PEFT takes no ModuleList, so its members are named."""
    return ["merger", *(f"deepstack_merger_list.{i}" for i in range(len(getattr(model.model.visual, "deepstack_merger_list", ()))))]


def _zero_through_vision(model: Any, inputs: dict[str, Any]) -> torch.Tensor | float:
    """Zero that depends on the trained weights of vision encoder and merger, in a batch without images: each rank of a distributed run
    must give a gradient for every trained weight."""
    if len(inputs["image_grid_thw"]):
        return 0.0
    trained = [p for name, p in model.named_parameters() if p.requires_grad and ".visual." in name]
    return sum((p.sum() * 0.0 for p in trained), start=torch.zeros((), device=inputs["input_ids"].device))


FAMILY = QwenVlFamily()
