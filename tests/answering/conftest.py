"""A small untrained model in LLaVA's layout and requests of every shape."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from answering.checkpoint import CheckpointAnswerer
from answering.protocol import Request
from dataset.processor import Processor
from dataset.sample import Message


def drawn(seed: int) -> Image.Image:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (40 + 10 * seed, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def asked(request_id: str, question: str, *pictures: Image.Image | Path) -> Request:
    """A request with one mark a picture in front of the question."""
    return Request(request_id, pictures, (Message("user", "<image>" * len(pictures) + "\n" * bool(pictures) + question),))


@pytest.fixture(scope="session")
def llava(parts: Path, processor: Processor) -> LlavaForConditionalGeneration:
    """Stock LLaVA made of the small parts, in fp32. Its weights are spread out, so that answers are decided and differ."""
    vision = AutoModel.from_pretrained(parts / "siglip", dtype=torch.float32).vision_model
    language = AutoModelForCausalLM.from_pretrained(parts / "qwen3", dtype=torch.float32)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_id=processor.placeholder_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(2.5)
        model.model.multi_modal_projector.linear_2.weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def answerer(llava: LlavaForConditionalGeneration, processor: Processor) -> CheckpointAnswerer:
    """Our answerer over the small model."""
    return CheckpointAnswerer(llava, processor)


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
