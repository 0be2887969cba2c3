"""Whether the Hub can be reached is found out once; without a network its clients do not try again and again."""

import os
import socket
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from huggingface_hub import constants

from hub_access import work_offline_if_unreachable


@pytest.fixture(autouse=True)
def as_online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the tests' own settings and earlier calls have decided."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    work_offline_if_unreachable.cache_clear()
    yield
    work_offline_if_unreachable.cache_clear()


@pytest.fixture
def listening() -> Iterator[str]:
    """Address of a server that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_a_connection_the_clients_use_their_caches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = closed_address()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    imported = ModuleType("datasets.config")
    monkeypatch.setitem(sys.modules, "datasets.config", imported)
    assert work_offline_if_unreachable() and work_offline_if_unreachable()
    assert constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1" and vars(imported)["HF_HUB_OFFLINE"] is True
    assert capsys.readouterr().err == f"{endpoint} cannot be reached: what was fetched before is used\n"


def test_a_host_whose_name_has_no_address_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    assert work_offline_if_unreachable()


def test_with_a_connection_nothing_changes(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", listening)
    assert not work_offline_if_unreachable() and not constants.is_offline_mode()


def test_a_proxy_is_asked_in_the_place_of_the_host(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", listening)
    assert not work_offline_if_unreachable()


def test_offline_mode_that_was_asked_for_needs_no_connection(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", listening)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert work_offline_if_unreachable()
