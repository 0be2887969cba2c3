"""A checkpoint with untrained weights."""

from pathlib import Path

import torch

from model.checkpoint_manifest import write_manifest
from model.siglip_qwen import assembly, checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.processor import Processor


def write_checkpoint(path: Path, parts: Path, processor: Processor) -> None:
    """Write a complete checkpoint of the small models with freshly initialised connector and LoRA adapters."""
    model = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=4, lora_alpha=8))
    torch.manual_seed(0)
    checkpoint.save(configure_trainable(assembly.build(model, image_token_id=processor.image_token_id), model, ("connector", "lora")), path)
    processor.save(path)
    write_manifest(path)
