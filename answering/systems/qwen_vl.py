"""Qwen3-VL and Qwen2.5-VL as published, as systems to compare with: unquantised or quantised, without torchvision."""

from typing import Any

import torch

from answering.config import QwenVlSystem
from answering.prompts import PromptPolicy
from answering.systems.family_answerer import FamilyAnswerer
from errors import UsageError
from model.family import LoadOptions
from model.qwen_vl.modeling import build, read_config
from model.qwen_vl.processor import QwenVlProcessor


def load(system: QwenVlSystem, device: torch.device | str, dtype: torch.dtype | None = None) -> FamilyAnswerer:
    """Load a configured system. With `max_memory` the model is split over devices, the CPU and offload_folder.

    Raises UsageError if it cannot be loaded or is of another family.
    """
    where = f"system {system.name}, path"
    config = read_config(where, system.path)
    if config.model_type != system.kind:
        raise UsageError(f"{where}: {system.path} is a {config.model_type} model, the system's kind says {system.kind}")
    limit = int(config.get_text_config(decoder=True).max_position_embeddings)
    processor = QwenVlProcessor.from_pretrained(where, system.path, max_length=limit)
    model = build(where, system.path, system.quantization, LoadOptions(dtype, device), **_split_options(system))
    settings = {"path": system.path, "quantization": system.quantization, "max_image_side": system.max_image_side}
    policy = PromptPolicy.from_config(system)
    return FamilyAnswerer(model, processor, policy, settings, kind=system.kind, max_image_side=system.max_image_side)


def _split_options(system: QwenVlSystem) -> dict[str, Any]:
    """Arguments of from_pretrained for a model that is split over devices; none if it is on one."""
    if system.max_memory is None:
        return {}
    memory = {int(device_name) if device_name.isdigit() else device_name: size for device_name, size in system.max_memory.items()}
    return {"device_map": "auto", "max_memory": memory, "offload_folder": system.offload_folder}
