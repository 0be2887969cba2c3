"""The API key of an endpoint: where it is read from, and that it is sent to the endpoint alone."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from answering.answerer_factory import check_system
from answering.config import OpenAiSystem
from answering.systems.openai_endpoint.api_key import api_key
from answering.systems.openai_endpoint.client import EndpointError
from errors import UsageError
from tests.answering.conftest import questions
from tests.answering.endpoints import GREEDY, KEY, THREE, Server, load


def test_the_key_is_sent_to_the_endpoint_and_appears_nowhere_else(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    config = system("500x1")
    answerer = load(config)
    answers = answerer.answer(questions(2), THREE)
    refused = load(system("401")).answer(questions(1), GREEDY)
    with pytest.raises(EndpointError) as error:
        answerer.client.complete({"model": "401", "messages": [], "temperature": 0.0})
    sent = [request["key"] for request in server.log()["requests"] if request["body"]["model"] == config.model]
    assert set(sent) == {f"Bearer {KEY}"}
    assert caplog.records
    printed = capfd.readouterr()
    texts = [repr(answers), repr(refused), repr(answerer.description), repr(answerer.system), repr(error.getrepr(chain=True, style="long"))]
    texts += [printed.out, printed.err, caplog.text, *(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json"))]
    assert not any(KEY in text for text in texts)


def test_the_key_is_read_from_the_environment_or_the_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED_KEY", raising=False)
    system = OpenAiSystem(name="far", kind="openai", model="m", api_key_env="PLANTED_KEY")
    with pytest.raises(UsageError, match=r"eval\.systems\.2\.api_key_env: PLANTED_KEY is set neither in the environment nor in .*\.env"):
        api_key(system, "eval.systems.2.", tmp_path)
    for line in ("PLANTED_KEY=abc", "export PLANTED_KEY = 'abc' ", '# a comment\nOTHER=1\nPLANTED_KEY="abc"'):
        (tmp_path / ".env").write_text(line + "\n", encoding="utf-8")
        assert api_key(system, "eval.systems.2.", tmp_path) == "abc"
    monkeypatch.setenv("PLANTED_KEY", "from the environment"[-11:])
    assert api_key(system, "eval.systems.2.", tmp_path) == "environment"
    monkeypatch.setenv("PLANTED_KEY", "two words")
    with pytest.raises(UsageError) as error:
        api_key(system, "eval.systems.2.", tmp_path)
    assert "two words" not in str(error.value)
    assert api_key(dataclasses.replace(system, api_key_env=None), "", tmp_path) == "none"


def test_a_missing_key_is_reported_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="api_key_env"):
        check_system(OpenAiSystem(name="far", kind="openai", model="m"))


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "https://host/v1?key=secret", "host/v1", "ftp://host"])
def test_an_invalid_url_or_one_that_contains_a_key_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        OpenAiSystem(name="far", kind="openai", model="m", base_url=url)
