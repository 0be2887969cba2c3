"""A small untrained model and requests of every shape."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


class Server:
    """Process of endpoint_server.py, and what it says of what it was sent."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("endpoint_server.py")
        self.process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def log(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def sent(self, model: str) -> list[dict[str, Any]]:
        """Bodies of the requests to a model."""
        return [one["body"] for one in self.log()["requests"] if one["body"]["model"] == model]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running OpenAI-compatible server."""
    running = Server()
    yield running
    running.process.kill()
    running.process.wait()
