"""Which requests have a valid bearer token, and that others are refused before their body."""

import hmac
import socket

import pytest

from tests.fakes import EchoAnswerer
from tests.serving.conftest import TIMEOUT_SECONDS, ask, serving
from tests.serving.http.raw_http import connect, read_response


def test_the_token_is_required_for_all_paths_but_health(answerer: EchoAnswerer) -> None:
    with serving(answerer, token="secret") as (client, _):
        without = {path: client.get(path).status_code for path in ("/health", "/metrics", "/v1/models", "/openapi.json", "/nothing")}
        wrong = [client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}) for token in ("Secret", "secre", "secrets")]
        right = client.get("/v1/models", headers={"Authorization": "Bearer secret"})
    assert without == {"/health": 200, "/metrics": 401, "/v1/models": 401, "/openapi.json": 401, "/nothing": 401}
    assert {response.status_code for response in wrong} == {401}
    assert wrong[0].headers["WWW-Authenticate"] == "Bearer"
    assert right.status_code == 200


def test_the_token_is_compared_in_constant_time(answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def record(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return compare(given, expected)

    monkeypatch.setattr(hmac, "compare_digest", record)
    with serving(answerer, token="secret") as (client, _):
        for token in ("", "Bearer s", "Bearer secret", "Bearer " + "x" * 5000):
            client.get("/v1/models", headers={"Authorization": token})
    assert len(compared) == 4
    assert len({len(value) for pair in compared for value in pair}) == 1, "the length of the token is not revealed"


@pytest.mark.parametrize("value", ["bearer secret", "BEARER secret", "Bearer  secret"])
def test_the_scheme_may_be_in_any_case(answerer: EchoAnswerer, value: str) -> None:
    with serving(answerer, token="secret") as (client, _):
        assert client.get("/v1/models", headers={"Authorization": value}).status_code == 200


@pytest.mark.parametrize("value", ["", "secret", "Basic secret", "Bearer", "Bearer secret, Bearer secret", "Bearersecret", "Bearer \xe9"])
def test_anything_else_is_refused(answerer: EchoAnswerer, value: str) -> None:
    with serving(answerer, token="secret") as (client, _):
        assert client.get("/v1/models", headers={b"Authorization": value.encode("latin-1")}).status_code == 401


@pytest.mark.parametrize("tokens", [("secret", "secret"), ("wrong", "secret"), ("secret", "wrong")])
def test_two_authorization_headers_are_refused(answerer: EchoAnswerer, tokens: tuple[str, str]) -> None:
    with serving(answerer, token="secret") as (client, _):
        response = client.get("/v1/models", headers=[("Authorization", f"Bearer {token}") for token in tokens])
    assert response.status_code == 401
    assert response.json()["error"]["message"] == "exactly one Authorization header is expected"


@pytest.mark.parametrize("extra", ["", "Expect: 100-continue\r\n"], ids=["unfinished", "asks first"])
def test_a_client_without_the_token_gets_401_before_its_body(answerer: EchoAnswerer, extra: str) -> None:
    with serving(answerer, token="secret") as (client, service), connect(client) as stranger:
        stranger.sendall(f"POST /vqa HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: 1000000\r\n\r\n".encode())
        head, body = read_response(stranger)
        assert head.startswith("HTTP/1.1 401") and "connection: close" in head.lower()
        assert b"bearer token" in body
        assert len(service.bodies) == 0
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(TIMEOUT_SECONDS)
        assert stranger.recv(1) == b"", "the connection is closed"
        assert ask(client, "red").status_code == 401


def test_a_client_that_sends_its_whole_body_first_reads_the_401(answerer: EchoAnswerer) -> None:
    with serving(answerer, token="secret") as (client, _):
        assert ask(client, "red", b"x" * 19_000_000).status_code == 401
