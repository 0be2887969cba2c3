"""A small untrained model and requests of every shape."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from answering.checkpoint import CheckpointAnswerer
from answering.protocol import Request
from dataset.processor import Processor
from dataset.sample import Message
from model.build import build
from model.config import ModelConfig
from model.vlm import VisionLanguageModel


def drawn(seed: int) -> Image.Image:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (40 + 10 * seed, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def asked(request_id: str, question: str, *pictures: Image.Image | Path) -> Request:
    """A request with one mark a picture in front of the question."""
    return Request(request_id, pictures, (Message("user", "<image>" * len(pictures) + "\n" * bool(pictures) + question),))


@pytest.fixture(scope="session")
def model(parts: Path, processor: Processor) -> VisionLanguageModel:
    """Our model of the small parts, in fp32. Its weights are spread out, so that answers are decided and differ."""
    config = ModelConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=None)
    torch.manual_seed(0)
    model = build(config, placeholder_id=processor.placeholder_id)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(2.5)
        model.model.multi_modal_projector.linear_2.weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def answerer(model: VisionLanguageModel, processor: Processor) -> CheckpointAnswerer:
    """Our answerer over the small model."""
    return CheckpointAnswerer(model, processor)


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    """One picture, several, none; short and long; English and Chinese."""
    return [
        asked("one", "What color is the circle?", drawn(1)),
        asked("none", "Is there a blue star left of the green ring?"),
        asked("several", "这幅图像描述了什么？", drawn(2), drawn(3)),
        asked("long", "Describe the picture. " * 6, drawn(4)),
        asked("same size", "How many squares?", drawn(5)),
    ]
