"""The early system of ResNet and GPT-2 as a family. GPT-2 is trained in full, but for its first three parameter tensors."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset.sample import Prompts
from errors import UsageError
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.resnet_gpt2.config import ResnetGpt2Config
from model.resnet_gpt2.modeling import ResnetGpt2, build, build_without_weights
from model.resnet_gpt2.processor import ResnetGpt2Processor
from model.step_flops import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, StepFlops
from model.stock.stock_family import StockFamily


class ResnetGpt2Family(StockFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "resnet_gpt2"
    config_class: ClassVar[type[ResnetGpt2Config]] = ResnetGpt2Config
    processor_class: ClassVar[type[ResnetGpt2Processor]] = ResnetGpt2Processor
    new_groups: ClassVar[tuple[ParamGroup, ...]] = ("connector",)

    def processor(self, config: ResnetGpt2Config, prompts: Prompts | None = None) -> ResnetGpt2Processor:
        return ResnetGpt2Processor.from_pretrained(config, prompts)

    def load_base(self, config: ResnetGpt2Config, processor: Any, options: LoadOptions) -> ResnetGpt2:
        del processor
        return build(config, options)

    def shape(self, config: ResnetGpt2Config, processor: Any) -> ResnetGpt2:
        del processor
        return build_without_weights(config)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        logits: torch.Tensor = model(**kept, logits_to_keep=supervised).logits
        return logits

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        del out, dtype, data_report
        raise UsageError(f"--format {export_format}: no other program reads a ResNet with GPT-2; use the checkpoint in {folder}")

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """ResNet's convolutions by torch's own counter, at 224 x 224 pixels; the rest from the sizes of its matrices."""
        del features_cached
        trains_vision = any(parameter.requires_grad for parameter in model.vision.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.vision(torch.zeros(1, 3, 224, 224, device=model.device))
        per_image = float(counter.get_total_flops() * (3 if trains_vision else 1))
        per_weight = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT
        matrices = [*model.language.transformer.h.parameters(), *model.connector.parameters()]
        per_token = per_weight * sum(weight.numel() for weight in matrices if weight.ndim == 2)
        head = (FORWARD + INPUT_GRADIENT) * model.language.lm_head.weight.numel()
        return StepFlops(float(per_token), float(head), per_image)


FAMILY = ResnetGpt2Family()
