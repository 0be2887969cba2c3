"""A checkpoint that was never trained."""

from pathlib import Path

import torch

from model.lora import attach
from model.siglip_qwen import assembly, checkpoint
from model.siglip_qwen.config import LoraConfig, ModelConfig
from model.siglip_qwen.processor import Processor


def write_checkpoint(path: Path, parts: Path, processor: Processor) -> None:
    """Write a whole checkpoint of the small parts, with projector and LoRA as they begin."""
    model = ModelConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=4, alpha=8))
    torch.manual_seed(0)
    checkpoint.save(attach(assembly.build(model, placeholder_id=processor.placeholder_id), model, ("projector", "lora")), path)
    processor.save(path)
    checkpoint.mark_whole(path)
