"""Merges the LoRA adapters of a checkpoint that is asked into its weights, W + s B A (arXiv:2106.09685, section 4.1), without PEFT.

A merged layer is one matrix product instead of three, and neither PEFT nor bitsandbytes, which PEFT imports, has to be loaded:
two seconds of every command that asks a checkpoint. For fp32 weights: 16 bits would round small updates away.

Shapes: W [O, I], A [R, I], B [O, R]; s = lora_alpha / R.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

PLAIN = {"use_dora": False, "use_rslora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none", "init_lora_weights": True}
"""Settings of PEFT's config with which an adapter is s B A and nothing else."""


@dataclass(frozen=True)
class PlainLora:
    """Adapters of rank r and factor `scale` on the linear layers whose full name matches `pattern`."""

    r: int
    scale: float
    pattern: str

    def expected_shapes(self, model: nn.Module) -> dict[str, torch.Size]:
        """Shapes of the adapters on `model`, by `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
        shapes = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and re.fullmatch(self.pattern, name):
                shapes[f"{name}.lora_A.weight"] = torch.Size((self.r, module.in_features))
                shapes[f"{name}.lora_B.weight"] = torch.Size((module.out_features, self.r))
        return shapes

    @torch.no_grad()
    def merge(self, model: nn.Module, adapters: Mapping[str, torch.Tensor]) -> None:
        """Add s B A to the fp32 weights of `model`, in place. adapters: by the names of `expected_shapes`."""
        for key, lora_a in adapters.items():
            if key.endswith(".lora_A.weight"):
                layer = key.removesuffix(".lora_A.weight")
                weight = model.get_parameter(f"{layer}.weight")
                product = adapters[f"{layer}.lora_B.weight"].float() @ lora_a.float()
                weight.add_(product.to(weight.device), alpha=self.scale)


def read_plain_lora(adapter_config: Path) -> PlainLora | None:
    """The adapters that PEFT's config describes; None if they are more than plain LoRA (DoRA, ranks by layer): PEFT has to load those."""
    settings = json.loads(adapter_config.read_text())
    by_layer = settings.get("rank_pattern") or settings.get("alpha_pattern") or not isinstance(settings["target_modules"], str)
    if by_layer or any(settings.get(name, value) != value for name, value in PLAIN.items()):
        return None
    return PlainLora(settings["r"], settings["lora_alpha"] / settings["r"], settings["target_modules"])
