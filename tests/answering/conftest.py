"""Fixtures: a small untrained model, requests of every kind, and a running endpoint."""

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
from answering.systems.family_answerer import FamilyAnswerer
from dataset.sample import Message
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.endpoints import KEY, Server
from tests.answering.stock_generate import num_distinct_lengths, plain, stock_greedy


def noise_image(seed: int) -> Image.Image:
    """An image of random pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (40 + 10 * seed, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def make_request(request_id: str, question: str, *images: Image.Image | Path) -> Request:
    """A request with one <image> per image before the question."""
    return Request(request_id, images, (Message("user", "<image>" * len(images) + "\n" * bool(images) + question),))


def questions(count: int) -> list[Request]:
    """Requests about one image that differ in a number."""
    return [make_request(f"q{i}", f"What color is number {i}?", noise_image(1)) for i in range(count)]


@pytest.fixture(scope="session")
def model(parts: Path, processor: Processor) -> VisionLanguageModel:
    """Our model built from the tiny pre-trained models, in fp32. Its weights are scaled up, so that answers are unambiguous and differ."""
    config = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=None)
    torch.manual_seed(0)
    model = build(config, image_token_id=processor.image_token_id)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(2.5)
        model.get_parameter("model.multi_modal_projector.linear_2.weight").mul_(4)
    return model


@pytest.fixture(scope="session")
def answerer(model: VisionLanguageModel, processor: Processor) -> FamilyAnswerer:
    """Our answerer with the small model."""
    return FamilyAnswerer(model, processor)


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    """With one image, several and none; short and long; English and Chinese."""
    return [
        make_request("one", "What color is the circle?", noise_image(1)),
        make_request("none", "Is there a blue star left of the green ring?"),
        make_request("several", "这幅图像描述了什么？", noise_image(2), noise_image(3)),
        make_request("long", "Describe the picture. " * 6, noise_image(4)),
        make_request("same size", "How many squares?", noise_image(5)),
    ]


@pytest.fixture(scope="session")
def early_ends(model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request]) -> tuple[int, ...]:
    """End tokens that this untrained model does generate, at different lengths. Found by trying random ones with `generate`."""
    batch = answerer.collate([answerer.encode(request) for request in requests])
    sequences = [sequence for question in plain(model, batch, answerer.end_ids, k=4) for sequence in question]
    token_ids = [token for sequence in sequences for token in sequence.token_ids]
    for seed in range(50):
        ends = (*answerer.end_ids, *random.Random(seed).sample(token_ids, 3))
        if num_distinct_lengths(stock_greedy(model, batch, ends)) > 1 and all(
            num_distinct_lengths(plain(model, batch, ends, k)) > 2 for k in (2, 4)
        ):
            return ends
    raise AssertionError("no sequence ends early, so early stopping cannot be compared")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running OpenAI-compatible server."""
    running = Server()
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def system(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAiSystem]:
    """A function that configures systems of the server, with a cache per test and almost no wait between retries."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # A model name per system, so that each has its own log.
    counter = iter(range(1000))

    def make(model: str = "plain", **settings: Any) -> OpenAiSystem:
        name = f"{model}+{tmp_path.name}-{next(counter)}"
        defaults = {"base_url": server.url, "cache": tmp_path / "cache", "retry_wait": 0.001, "retries": 2}
        return OpenAiSystem(name="far", kind="openai", model=name, **{**defaults, **settings})

    return make
