"""Decoding settings of the configuration and of a request reach the system, are part of the answer cache, and are refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from answering.config import DESCRIPTION_NGRAM_SIZE, CheckpointSystem, DecodingConfig, OpenAiSystem, RerankConfig, System
from serving.engine import LoadPlan
from serving.routes.decoding_fields import DecodingForm
from tests.fakes import Recorder
from tests.pipeline import ROOT
from tests.serving.conftest import ask, serving
from tests.serving.routes.conftest import Running

SETTINGS: dict[str, Any] = {
    "top_p": 0.9,
    "top_k": 40,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "no_repeat_ngram_size": 3,
    "stop": ["."],
}


def plan(system: System | None = None, **decoding: Any) -> LoadPlan:
    system = system or CheckpointSystem(name="fake", kind="checkpoint")
    return LoadPlan("fake", system, Path("none"), Path("none"), RerankConfig(), DecodingConfig(**decoding))


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def decoded(recorder: Recorder, names: Any) -> dict[str, Any]:
    return {name: getattr(recorder.decoding, name) for name in names}


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_completion_has_the_settings_of_its_request(running: Running, stream: bool) -> None:
    assert running.chat(temperature=0.7, seed=1, stream=stream, **SETTINGS).status_code == 200
    assert decoded(running.recorder, SETTINGS) == plain(SETTINGS)
    assert (running.recorder.decoding.strategy, running.recorder.decoding.temperature) == ("sample", 0.7)
    assert running.chat(stream=stream).status_code == 200
    assert running.recorder.decoding.no_repeat_ngram_size == DESCRIPTION_NGRAM_SIZE, "a conversation does not loop by default"
    assert running.chat(temperature=1.0, top_k=-1, stop="").status_code == 200
    assert (running.recorder.decoding.top_k, running.recorder.decoding.stop) == (0, ())


def test_the_configured_settings_hold_where_a_request_says_nothing() -> None:
    recorder = Recorder()
    with serving(recorder, plan=plan(num_candidates=3, length_penalty=0.0, **plain(SETTINGS))) as (web, _):
        assert Running(web, recorder).chat(temperature=0.7, top_k=5).status_code == 200
        assert decoded(recorder, SETTINGS) == {**plain(SETTINGS), "top_k": 5}
        assert Running(web, recorder).chat().status_code == 200
        assert decoded(recorder, ("top_p", "top_k", "length_penalty")) == {"top_p": 1.0, "top_k": 0, "length_penalty": 1.0}
        assert recorder.decoding.repetition_penalty == 1.1
        ask(web, "What?")
        assert decoded(recorder, (*SETTINGS, "strategy", "length_penalty")) == {
            **plain(SETTINGS),
            "strategy": "beam",
            "length_penalty": 0.0,
        }


def test_a_form_has_the_settings_of_its_request_and_the_cache_tells_them_apart() -> None:
    recorder = Recorder()
    with serving(recorder, plan=plan(num_candidates=2)) as (web, _):
        sampled = {"strategy": "sample", "temperature": 0.5, "seed": 7, **SETTINGS}
        assert ask(web, "What?", **sampled).headers["X-Cache"] == "miss"
        assert decoded(recorder, sampled) == plain(sampled)
        assert ask(web, "What?", **sampled).headers["X-Cache"] == "hit"
        for name, value in {**SETTINGS, "seed": 8, "temperature": 0.6}.items():
            other = {"stop": ["?"]} if name == "stop" else {name: 1 if isinstance(value, int) else 0.25}
            assert ask(web, "What?", **{**sampled, **other}).headers["X-Cache"] == "miss", name
        assert ask(web, "What?", length_penalty=-1).headers["X-Cache"] == "miss"
        assert (recorder.decoding.length_penalty, recorder.decoding.num_candidates) == (-1.0, 2)
        assert ask(web, "What?").headers["X-Cache"] == "miss"
        assert recorder.decoding == dataclasses.replace(plan(num_candidates=2).decoding, batch_size=1), "short answers stay what they were"


@pytest.mark.parametrize("page", ["service.md", "zh/service.md"])
def test_the_documentation_names_every_field(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert {name for name in DecodingForm.__dataclass_fields__ if f"`{name}`" not in text} == set()


def test_greedy_requests_that_differ_in_what_it_ignores_are_one(running: Running) -> None:
    running.chat(temperature=0, top_p=0.5, top_k=3)
    first = running.recorder.decoding
    running.chat(temperature=0)
    assert running.recorder.decoding == first


@pytest.mark.parametrize("name", ["top_k", "repetition_penalty", "no_repeat_ngram_size"])
def test_what_an_endpoint_does_not_have_is_refused_by_name(name: str) -> None:
    recorder = Recorder()
    far = OpenAiSystem(name="far", kind="openai", model="m")
    with serving(recorder, plan=plan(far, num_candidates=2)) as (web, _):
        response = Running(web, recorder).chat(temperature=1.0, **{name: SETTINGS[name]})
        assert response.status_code == 422
        assert response.json()["error"]["message"].startswith(
            f"{name}: {SETTINGS[name]}, but system far is asked through OpenAI's API, which has no such setting"
        )
        assert Running(web, recorder).chat(temperature=1.0, top_p=0.5, stop=["."], presence_penalty=1).status_code == 200
        assert ask(web, "What?", temperature=0.5, top_p=0.5).status_code == 200, "an endpoint samples its other candidates"
