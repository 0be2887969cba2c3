"""The service answers with every kind of system, on every route."""

import base64
import json
from pathlib import Path

import pytest

from answering.config import Blip2System, CheckpointSystem, OpenAiSystem, QwenVlSystem, RerankConfig, System
from answering.protocol import Decoding
from serving.engine import Engine, LoadPlan
from tests.fakes import EchoAnswerer
from tests.serving.conftest import ask, image_file, serving, wait_for
from tests.small_models import build_blip2


@pytest.fixture(scope="module")
def systems(parts: Path, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, System]:
    blip = {family: str(build_blip2(tmp_path_factory.mktemp(family), family, parts)) for family in ("opt", "t5")}
    checkpoint = str(experiment / "checkpoints/trial/checkpoint-1")
    configured: list[System] = [
        CheckpointSystem(name="checkpoint-4bit", kind="checkpoint", path=checkpoint, quantization="nf4"),
        QwenVlSystem(name="qwen-4bit", kind="qwen3_vl", path=str(parts / "qwen3_vl"), quantization="nf4"),
        *(Blip2System(name=f"blip2-{family}", kind="blip2", path=path) for family, path in blip.items()),
    ]
    return {system.name: system for system in configured}


def plan(system: System) -> LoadPlan:
    return LoadPlan(system.name, system, Path("none"), Path("none"), RerankConfig(), Decoding(num_candidates=2, max_new_tokens=3))


@pytest.mark.parametrize("name", ["checkpoint-4bit", "qwen-4bit", "blip2-opt", "blip2-t5"])
def test_every_system_answers_on_every_route(systems: dict[str, System], answerer: EchoAnswerer, name: str) -> None:
    url = "data:image/png;base64," + base64.b64encode(image_file()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    chat = {"model": name, "messages": [{"role": "user", "content": parts}], "max_tokens": 3}
    with serving(answerer, plan=plan(systems[name]), load=Engine.load) as (client, service):
        wait_for(lambda: service.engine is not None or service.failure is not None)
        answer = ask(client, "What color?").json()
        completion = client.post("/v1/chat/completions", json=chat).json()
        several = client.post("/v1/chat/completions", json={**chat, "n": 2, "temperature": 1.0, "seed": 1}).json()
        lines = client.post("/v1/chat/completions", json={**chat, "stream": True, "temperature": 1e-3, "seed": 1}).text.splitlines()
    assert answer["status"] == "success" and 1 <= len(answer["candidates"]) <= 2
    assert [choice["message"]["role"] for choice in completion["choices"]] == ["assistant"]
    assert [choice["index"] for choice in several["choices"]] == [0, 1]
    assert lines[-2] == "data: [DONE]"
    finish_reasons = [json.loads(line[6:])["choices"][0]["finish_reason"] for line in lines if line.startswith("data: {")]
    assert finish_reasons[-1] in ("stop", "length")


def test_an_unreachable_endpoint_is_an_error_response(answerer: EchoAnswerer) -> None:
    unreachable = OpenAiSystem(name="far", kind="openai", model="m", base_url="http://127.0.0.1:9/v1", api_key_env=None, retries=0)
    with serving(answerer, plan=plan(unreachable), load=Engine.load) as (client, service):
        wait_for(lambda: service.engine is not None or service.failure is not None)
        response = ask(client, "What color?")
    assert response.status_code in (422, 502, 503)
    assert "Traceback" not in response.text and response.json()["error"]["message"]
