"""Services that the official client is pointed at: one that records what it is asked, and one with a small untrained model."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from answering.config import CheckpointSystem, RerankConfig
from answering.protocol import Decoding
from serving.engine import Engine, LoadPlan
from tests.fakes import EchoAnswerer, Recorder
from tests.serving.conftest import image_file, serving, wait_for

URL = "data:image/png;base64," + base64.b64encode(image_file()).decode()


@dataclass
class Running:
    """A running service. web: its HTTP client; recorder: what it was asked; settings: decoding of its plan."""

    web: httpx2.Client
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{str(self.web.base_url).rstrip('/')}/v1", api_key="none", max_retries=0)

    def chat(self, messages: object = None, **fields: Any) -> httpx2.Response:
        """POST a chat completion."""
        turns = [{"role": "user", "content": "What is it?"}] if messages is None else messages
        return self.web.post("/v1/chat/completions", json={"model": "fake", "messages": turns, **fields})


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service that answers with the question, and caches nothing."""
    recorder = Recorder()
    with serving(recorder, cache_mib=0.0) as (web, _):
        yield Running(web, recorder)


@pytest.fixture(scope="module")
def real(experiment: Path) -> Iterator[openai.OpenAI]:
    """A service with a small untrained model, of at most 9 new tokens."""
    system = CheckpointSystem(name="small", kind="checkpoint", path=str(experiment / "checkpoints/trial/checkpoint-1"))
    plan = LoadPlan("small", system, Path("none"), Path("none"), RerankConfig(), Decoding(num_candidates=2, max_new_tokens=3))
    with serving(EchoAnswerer(), plan=plan, load=Engine.load, max_new_tokens=9) as (web, service):
        wait_for(lambda: service.engine is not None or service.failure is not None)
        yield Running(web).client
