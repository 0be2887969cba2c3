"""Which pages of other sites may use the service through a browser: Host and Origin."""

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from serving.config import ServeConfig
from serving.http.cross_site import CrossSiteRules
from serving.http.error_responses import ServiceError
from tests.fakes import EchoAnswerer
from tests.serving.conftest import ask, serving
from tests.serving.http.raw_http import connect, read_response

SITE = "https://photos.example"


def code(rules: CrossSiteRules, *headers: tuple[str, str]) -> str | None:
    """The code of the error for a request with these headers; None if it is allowed."""
    try:
        rules.check(Headers(raw=[(name.encode(), value.encode()) for name, value in headers]))
    except ServiceError as error:
        assert error.status_code == 403
        return error.code
    return None


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "a.localhost", "127.0.0.1:1", "192.168.0.7", "[::1]:8", "[2001:db8::1]"])
def test_localhost_and_ip_addresses_are_names_of_the_service(host: str) -> None:
    assert code(CrossSiteRules(), ("host", host)) is None


@pytest.mark.parametrize(
    "host",
    ["", "attacker.example", "localhost.attacker.example", "127.0.0.1.nip.io", "a@localhost", "localhost/x", "[::1", "x:y", "0x7f.1"],
)
def test_other_names_are_not(host: str) -> None:
    assert code(CrossSiteRules(("photos.example",)), ("host", host)) == "host"


def test_the_host_is_stated_once() -> None:
    assert code(CrossSiteRules()) == "host"
    assert code(CrossSiteRules(), ("host", "localhost"), ("host", "localhost")) == "host"


@pytest.mark.parametrize(("pattern", "host"), [("photos.example", "Photos.Example:8443"), ("*.example", "a.b.example."), ("*", "any.test")])
def test_names_can_be_allowed(pattern: str, host: str) -> None:
    assert code(CrossSiteRules((pattern,)), ("host", host)) is None
    assert pattern == "*" or code(CrossSiteRules((pattern,)), ("host", "example")) == "host"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "https://localhost"),
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("[::1]:9", "http://[::1]:9"),
        ("localhost:8000", SITE),
        ("localhost:8000", SITE.upper()),
    ],
)
def test_pages_of_the_service_and_of_allowed_sites_may_use_it(host: str, origin: str) -> None:
    assert code(CrossSiteRules((), (SITE,)), ("host", host), ("origin", origin)) is None


@pytest.mark.parametrize(
    "origin",
    ["http://attacker.example", "null", "", "http://localhost:3", "http://localhost", "http://127.0.0.1:8000", f"{SITE}.attacker.example",
     f"{SITE}:444", "http://photos.example", "localhost:8000", "file://localhost:8000", "http://x@localhost:8000"],
)  # fmt: skip
def test_other_pages_may_not(origin: str) -> None:
    assert code(CrossSiteRules((), (SITE,)), ("host", "localhost:8000"), ("origin", origin)) == "origin"
    assert code(CrossSiteRules((), (SITE,)), ("host", "localhost:8000"), ("origin", SITE), ("origin", origin)) == "origin"


def test_the_service_refuses_other_hosts_and_sites_with_the_name_of_the_key(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _):
        rebound = client.get("/v1/models", headers={"Host": "rebound.example"})
        page = client.post("/vqa", headers={"Origin": "http://attacker.example"}, files={"image": b"x"})
        health = client.get("/health", headers={"Origin": "null"})
        own = client.get("/v1/models", headers={"Origin": str(client.base_url).rstrip("/")})
        program = ask(client, "red")
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host")
    assert "serve.allowed_hosts" in rebound.json()["error"]["message"]
    assert (page.status_code, page.json()["error"]["code"]) == (403, "origin")
    assert "serve.allowed_origins" in page.json()["error"]["message"]
    assert (health.status_code, own.status_code, program.status_code) == (403, 200, 200)
    assert answerer.calls == [["red"]]


def test_a_request_without_a_host_is_refused(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _), connect(client) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_response(connection)[0].startswith("HTTP/1.1 403")


def test_where_a_token_is_required_host_and_origin_are_not_checked(answerer: EchoAnswerer) -> None:
    headers = {"Host": "any.example", "Origin": "http://any.example:1", "Authorization": "Bearer secret"}
    with serving(answerer, token="secret") as (client, _):
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.get("/v1/models", headers={"Host": "any.example"}).status_code == 401


def test_scripts_of_an_allowed_site_can_read_answers_and_errors(answerer: EchoAnswerer) -> None:
    headers = {"Origin": SITE}
    asks = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with serving(answerer, token="secret", allowed_origins=(SITE,)) as (client, _):
        preflight = client.options("/vqa", headers=asks)
        responses = [
            client.get("/v1/models", headers={**headers, "Authorization": "Bearer secret"}),
            client.get("/v1/models", headers=headers),
            preflight,
        ]
        other = client.get("/v1/models", headers={"Origin": "http://attacker.example", "Authorization": "Bearer secret"})
    assert [response.status_code for response in responses] == [200, 401, 200]
    assert {response.headers["Access-Control-Allow-Origin"] for response in responses} == {SITE}
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
    assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize(
    "keys",
    [
        {"allowed_hosts": ["https://photos.example"]},
        {"allowed_hosts": ["photos.example:8000"]},
        {"allowed_hosts": ["a.*.example"]},
        {"allowed_origins": ["photos.example"]},
        {"allowed_origins": ["https://photos.example/"]},
        {"allowed_origins": ["https://*.example"]},
    ],
)
def test_a_host_is_a_name_and_an_origin_has_a_scheme(keys: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError):
        ServeConfig(**keys)  # type: ignore[arg-type]
    assert ServeConfig(allowed_hosts=("*.a.example", "b"), allowed_origins=("http://[::1]:80", "null", "*"))
