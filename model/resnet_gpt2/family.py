"""The early system of ResNet and GPT-2 as a family. GPT-2 is trained in full, but for its first three parameter tensors."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset.sample import Prompts
from errors import UsageError
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.quantization import Quantization
from model.resnet_gpt2.config import ResnetGpt2Config
from model.resnet_gpt2.modeling import ResnetGpt2, build, build_without_weights
from model.resnet_gpt2.processor import ResnetGpt2Processor
from model.step_flops import StepFlops
from model.stock.stock_family import StockFamily


class ResnetGpt2Family(StockFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "resnet_gpt2"
    config_class: ClassVar[type[ResnetGpt2Config]] = ResnetGpt2Config
    whole_model_types: ClassVar[frozenset[str]] = frozenset()
    new_groups: ClassVar[tuple[ParamGroup, ...]] = ("connector",)

    def processor(self, config: ResnetGpt2Config, prompts: Prompts | None = None) -> ResnetGpt2Processor:
        return ResnetGpt2Processor.from_pretrained(config, prompts)

    def load_processor(self, folder: Path) -> ResnetGpt2Processor:
        return ResnetGpt2Processor.load(folder)

    def load_base(self, config: ResnetGpt2Config, processor: Any, options: LoadOptions) -> ResnetGpt2:
        del processor
        return build(config, options)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        raise UsageError(f"{folder}: a ResNet with GPT-2 is loaded from a checkpoint only ({quantization}, {options.device})")

    def shape(self, config: ResnetGpt2Config, processor: Any) -> ResnetGpt2:
        del processor
        return build_without_weights(config)

    def lora_config(self, model: Any, config: Any, run_groups: Collection[ParamGroup]) -> peft.LoraConfig:
        del model, config, run_groups
        raise UsageError("train.stages: a resnet_gpt2 model has no adapters; train language")

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        logits: torch.Tensor = model(**kept, logits_to_keep=supervised).logits
        return logits

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        del out, dtype, data_report
        raise UsageError(f"--format {export_format}: no other program reads a ResNet with GPT-2; use the checkpoint in {folder}")

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """By torch's own counter, of one image and of one token; a backward pass costs twice the forward pass of what is trained."""
        del features_cached
        device = model.device
        tokens = torch.zeros(1, 1, dtype=torch.long, device=device)
        hidden = torch.zeros(1, 1, model.language.config.n_embd, device=device)
        pixels = torch.zeros(1, 3, 224, 224, device=device)
        per_image = _flops(model.vision, pixels, train=any(p.requires_grad for p in model.vision.parameters()))
        language = _flops(model.language.transformer, tokens, train=True)
        fusion = _flops(model.connector, hidden, hidden, train=True)
        head = _flops(model.language.lm_head, hidden, train=False)
        return StepFlops(language + fusion, 2 * head, per_image)


def _flops(module: torch.nn.Module, *inputs: torch.Tensor, train: bool) -> float:
    """FLOPs of a forward pass, with those of its backward pass if it is trained."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return float(counter.get_total_flops() * (3 if train else 1))


FAMILY = ResnetGpt2Family()
