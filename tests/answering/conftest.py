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
from tests.answering.plain import num_distinct_lengths, plain, stock_greedy


def noise_image(seed: int) -> Image.Image:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (40 + 10 * seed, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def make_request(request_id: str, question: str, *images: Image.Image | Path) -> Request:
    """A request with one mark a picture in front of the question."""
    return Request(request_id, images, (Message("user", "<image>" * len(images) + "\n" * bool(images) + question),))


def questions(count: int) -> list[Request]:
    """Requests that differ in a number, about one picture."""
    return [make_request(f"q{i}", f"What color is number {i}?", noise_image(1)) for i in range(count)]


@pytest.fixture(scope="session")
def model(parts: Path, processor: Processor) -> VisionLanguageModel:
    """Our model of the small parts, in fp32. Its weights are spread out, so that answers are decided and differ."""
    config = ModelConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=None)
    torch.manual_seed(0)
    model = build(config, image_token_id=processor.image_token_id)
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
        make_request("one", "What color is the circle?", noise_image(1)),
        make_request("none", "Is there a blue star left of the green ring?"),
        make_request("several", "这幅图像描述了什么？", noise_image(2), noise_image(3)),
        make_request("long", "Describe the picture. " * 6, noise_image(4)),
        make_request("same size", "How many squares?", noise_image(5)),
    ]


@pytest.fixture(scope="session")
def early_ends(model: VisionLanguageModel, answerer: CheckpointAnswerer, requests: list[Request]) -> tuple[int, ...]:
    """End tokens that these untrained weights really reach, at different lengths. Found by trying, for plain `generate`."""
    batch = answerer.collate([answerer.encode(request) for request in requests])
    token_ids = [token for question in plain(model, batch, answerer.end_ids, k=4) for one in question for token in one.token_ids]
    for seed in range(50):
        ends = (*answerer.end_ids, *random.Random(seed).sample(token_ids, 3))
        if num_distinct_lengths(stock_greedy(model, batch, ends)) > 1 and all(
            num_distinct_lengths(plain(model, batch, ends, k)) > 2 for k in (2, 4)
        ):
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
    counter = iter(range(1000))

    def make(model: str = "plain", **settings: Any) -> OpenAiSystem:
        name = f"{model}+{tmp_path.name}-{next(counter)}"
        defaults = {"base_url": server.url, "cache": tmp_path / "cache", "retry_wait": 0.001, "retries": 2}
        return OpenAiSystem(name="far", kind="openai", model=name, **{**defaults, **settings})

    return make
