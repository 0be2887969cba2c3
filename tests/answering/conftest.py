"""A small untrained model, requests of every shape, and a running endpoint."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from answering.config import OpenAiSystem
from answering.protocol import Request
from answering.systems.siglip_qwen import CheckpointAnswerer
from dataset.sample import Message
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.endpoints import KEY, Server
from tests.answering.plain import lengths, plain, plain_greedy


def drawn(seed: int) -> Image.Image:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (40 + 10 * seed, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def asked(request_id: str, question: str, *pictures: Image.Image | Path) -> Request:
    """A request with one mark a picture in front of the question."""
    return Request(request_id, pictures, (Message("user", "<image>" * len(pictures) + "\n" * bool(pictures) + question),))


def questions(count: int) -> list[Request]:
    """Requests that differ in a number, about one picture."""
    return [asked(f"q{i}", f"What color is number {i}?", drawn(1)) for i in range(count)]


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


@pytest.fixture(scope="session")
def early_ends(model: VisionLanguageModel, answerer: CheckpointAnswerer, requests: list[Request]) -> tuple[int, ...]:
    """End tokens that these untrained weights really reach, at different lengths. Found by trying, for plain `generate`."""
    batch = answerer.collate([answerer.encode(request) for request in requests])
    said = [token for question in plain(model, batch, answerer.end_ids, k=4) for one in question for token in one.token_ids]
    for seed in range(50):
        ends = (*answerer.end_ids, *random.Random(seed).sample(said, 3))
        if lengths(plain_greedy(model, batch, ends)) > 1 and all(lengths(plain(model, batch, ends, k)) > 2 for k in (2, 4)):
            return ends
    raise AssertionError("no sequence ends early, so the end of a search cannot be compared")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running OpenAI-compatible server."""
    running = Server()
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def system(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAiSystem]:
    """Systems at the server, with a cache of their own and hardly a wait between tries."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Each test has models, and so a log, of its own.
    times = iter(range(1000))

    def make(model: str = "plain", **settings: Any) -> OpenAiSystem:
        name = f"{model}+{tmp_path.name}-{next(times)}"
        usual = {"base_url": server.url, "cache": tmp_path / "cache", "retry_wait": 0.001, "retries": 2}
        return OpenAiSystem(name="far", kind="openai", model=name, **{**usual, **settings})

    return make
