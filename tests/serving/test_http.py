"""The service over HTTP, with a fake answerer: batches, queue, deadlines, disconnects, cache, errors, metrics."""

import base64
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from errors import TesseraError
from serving.engine import Engine
from serving.routes.decoding_fields import DecodingForm
from tests.fakes import EchoAnswerer
from tests.serving.conftest import TIMEOUT_SECONDS, ask, image_file, serving, wait_for

FORM = b"POST /vqa HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
ADDRESS = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image_file()).decode()}}


def hold(answerer: EchoAnswerer, client: httpx2.Client, pool: ThreadPoolExecutor, question: str = "first") -> object:
    """Send a request that keeps the answerer busy until `released` is set."""
    answerer.released.clear()
    future = pool.submit(ask, client, question)
    assert answerer.call_started.acquire(timeout=TIMEOUT_SECONDS)
    return future


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(32)


def test_a_question_gets_its_answer_and_candidates(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _):
        response = ask(client, " red ", k=2)
    assert response.status_code == 200
    assert response.json() == {
        "status": "success",
        "question": "red",
        "answer": "red!",
        "candidates": [{"text": text, "log_prob": None, "mean_log_prob": None, "raw": text, "count": 1} for text in ("red!", "red?")],
    }


def test_questions_that_wait_at_the_same_time_are_one_batch(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer) as (client, service):
        first = hold(answerer, client, pool)
        others = [pool.submit(ask, client, f"question {i}") for i in range(5)]
        wait_for(lambda: service.batcher.waiting == 5)
        answerer.released.set()
        assert [future.result().json()["answer"] for future in others] == [f"question {i}!" for i in range(5)]
        assert first.result().json()["answer"] == "first!"  # type: ignore[attr-defined]
    assert [len(call) for call in answerer.calls] == [1, 5]


def test_questions_with_another_k_are_another_batch(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer) as (client, service):
        hold(answerer, client, pool)
        futures = [pool.submit(ask, client, str(k), k=k) for k in (2, 3, 2)]
        wait_for(lambda: service.batcher.waiting == 3)
        answerer.released.set()
        assert {future.result().status_code for future in futures} == {200}
    assert sorted(sorted(call) for call in answerer.calls[1:]) == [["2", "2"], ["3"]]


def test_a_question_that_cannot_be_answered_does_not_fail_its_batch(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer) as (client, service):
        hold(answerer, client, pool)
        futures = [pool.submit(ask, client, question) for question in ("impossible", "possible")]
        wait_for(lambda: service.batcher.waiting == 2)
        answerer.released.set()
        failed, answered = (future.result() for future in futures)
    assert (failed.status_code, failed.json()["error"]["message"]) == (422, "it cannot be answered")
    assert answered.json()["answer"] == "possible!"


def test_a_full_queue_is_429_with_retry_after(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer, max_batch=1, max_queue=2) as (client, service):
        hold(answerer, client, pool)
        waiting = [pool.submit(ask, client, f"waits {i}") for i in range(2)]
        wait_for(lambda: service.batcher.waiting == 2)
        refused = ask(client, "too many")
        assert client.get("/health").status_code == 200, "GET requests do not count"
        answerer.released.set()
        assert {future.result().status_code for future in waiting} == {200}
        assert ask(client, "again").status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert not any("too many" in call for call in answerer.calls)


def test_a_request_past_its_deadline_is_504_and_leaves_the_queue(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer, deadline_seconds=0.3) as (client, service):
        first = hold(answerer, client, pool)
        late = ask(client, "late")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
        assert first.result().status_code == 504  # type: ignore[attr-defined]
        assert service.batcher.waiting == 0
        answerer.released.set()
        wait_for(lambda: ask(client, "next").status_code == 200)
    assert not any("late" in call for call in answerer.calls)


def test_the_request_of_a_client_that_disconnects_leaves_the_queue(answerer: EchoAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(answerer) as (client, service):
        first = hold(answerer, client, pool)
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as leaving:
            request = client.build_request("POST", "/vqa", files={"image": image_file(1)}, data={"question": "leaves"})
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            leaving.sendall(f"POST /vqa HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            wait_for(lambda: service.batcher.waiting == 1)
        wait_for(lambda: service.batcher.waiting == 0)
        answerer.released.set()
        assert first.result().status_code == 200  # type: ignore[attr-defined]
        wait_for(lambda: service.in_progress == 0)
        assert 'tessera_requests_total{path="/vqa",status="499"} 1.0' in client.get("/metrics").text
    assert answerer.calls == [["first"]]


def test_the_same_question_about_the_same_image_is_answered_once(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _):
        responses = [
            ask(client, "red"),
            ask(client, "red"),
            ask(client, "red", image_file(1)),
            ask(client, "red", k=2),
            ask(client, "blue"),
        ]
    assert [response.headers["X-Cache"] for response in responses] == ["miss", "hit", "miss", "miss", "miss"]
    assert responses[0].json() == responses[1].json()
    assert len(answerer.calls) == 4


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({}, 1),
        ({"stream": False, "n": 3, "user": "someone"}, 1),
        ({"messages": [{"role": "user", "content": "other"}]}, 2),
        ({"messages": [{"role": "system", "content": "say it"}, {"role": "user", "content": "say it"}]}, 2),
        ({"messages": [{"role": "user", "content": [ADDRESS, {"type": "text", "text": "say it"}]}]}, 2),
        ({"max_tokens": 7}, 2),
        ({"temperature": 1.0}, 3),
        ({"temperature": 1.0, "seed": 1}, 2),
        ({"temperature": 1.0, "seed": 2, "n": 2}, 2),
    ],
)
def test_a_conversation_is_cached_by_its_turns_and_parameters(answerer: EchoAnswerer, changes: dict[str, object], calls: int) -> None:
    """Sent once as it is, and twice with changes."""
    plain = {"model": "fake", "messages": [{"role": "user", "content": "say it"}]}
    with serving(answerer) as (client, _):
        for body in (plain, {**plain, **changes}, {**plain, **changes}):
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
        if "seed" in changes:
            assert client.post("/v1/chat/completions", json={**plain, **changes, "seed": 3}).status_code == 200
            calls += 1
    assert len(answerer.calls) == calls


def test_the_cache_key_of_a_long_conversation_is_short(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, service):
        for text in ("x", "y", "x"):
            body = {"model": "fake", "messages": [{"role": "user", "content": text * 4000}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        key_lengths = [len(repr(key)) for key in service.cache._entries]
    assert (len(answerer.calls), len(key_lengths)) == (2, 2)
    assert max(key_lengths) < 200


def test_the_cache_can_be_turned_off(answerer: EchoAnswerer) -> None:
    with serving(answerer, cache_mib=0.0) as (client, _):
        assert [ask(client, "red").headers["X-Cache"] for _ in range(2)] == ["miss", "miss"]


def test_requests_are_503_until_the_models_are_loaded(answerer: EchoAnswerer) -> None:
    released = threading.Event()

    def load(plan: object) -> Engine:
        assert released.wait(TIMEOUT_SECONDS)
        return Engine(plan, answerer, None)  # type: ignore[arg-type]

    with serving(answerer, load=load) as (client, service):
        before, refused = client.get("/health"), ask(client, "red")
        released.set()
        wait_for(lambda: service.engine is not None)
        after = client.get("/health")
    assert before.status_code == 503
    assert before.json() == {
        "status": "loading", "vqa_model_loaded": False, "clip_model_loaded": False, "image_library_size": 0, "device": None,
        "gpu_memory_allocated_gb": 0.0, "gpu_memory_reserved_gb": 0.0,
    }  # fmt: skip
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (503, "loading", "5")
    assert (after.status_code, after.json()["status"], after.json()["vqa_model_loaded"]) == (200, "ok", True)


def test_an_internal_error_is_500_without_a_traceback(answerer: EchoAnswerer) -> None:
    answerer.error = RuntimeError("secret of /home/someone")
    with serving(answerer) as (client, _):
        response = ask(client, "red")
        answerer.error = None
        assert ask(client, "red").status_code == 200
    assert response.status_code == 500
    assert response.json() == {
        "status": "error",
        "error": {
            "message": "internal error; the server's log has the details under the request id",
            "type": "server_error", "param": None, "code": "internal",
        },
        "request_id": response.headers["X-Request-ID"],
    }  # fmt: skip


def test_an_internal_error_is_logged_once_with_the_request_id(answerer: EchoAnswerer, caplog: pytest.LogCaptureFixture) -> None:
    answerer.error = RuntimeError("out of memory")
    with serving(answerer) as (client, _):
        response = ask(client, "red")
    messages = [record.getMessage() for record in caplog.records if record.name == "tessera.serve" and record.levelname == "ERROR"]
    assert messages == [
        "a batch of 1 failed: RuntimeError: out of memory",
        f"request {response.json()['request_id']} failed: RuntimeError: out of memory",
    ]
    assert not [record for record in caplog.records if record.name.startswith("uvicorn") and record.levelname == "ERROR"]


def test_a_service_whose_batcher_fails_stops_with_the_error(answerer: EchoAnswerer) -> None:
    ended = threading.Event()
    with serving(answerer) as (client, service):
        service.on_failure = ended.set

        def broken(size: int, seconds: float) -> None:
            raise ArithmeticError(f"{size} in {seconds >= 0}")

        service.batcher.on_batch = broken
        assert ask(client, "red").status_code == 200
        assert ended.wait(TIMEOUT_SECONDS)
    assert repr(service.failure) == "ArithmeticError('1 in True')"


@pytest.mark.parametrize("path", ["/nothing", "/vqa", "/v1/chat/completions"])
def test_every_error_is_json_with_the_request_id(answerer: EchoAnswerer, path: str) -> None:
    with serving(answerer) as (client, _):
        response = client.get(path)
        chosen = client.get(path, headers={"X-Request-ID": "mine-1"})
        too_long = client.get(path, headers={"X-Request-ID": "x" * 65})
    assert response.status_code in (404, 405)
    assert re.fullmatch("[0-9a-f]{32}", response.json()["request_id"])
    assert response.json()["error"]["message"]
    assert chosen.json()["request_id"] == chosen.headers["X-Request-ID"] == "mine-1"
    assert too_long.json()["request_id"] != "x" * 65


def test_metrics_are_exported_for_prometheus(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _):
        ask(client, "red")
        ask(client, "red")
        client.get("/made/up")
        text = client.get("/metrics").text
    for line in (
        'tessera_requests_total{path="/vqa",status="200"} 2.0',
        'tessera_requests_total{path="other",status="404"} 1.0',
        'tessera_request_seconds_count{path="/vqa"} 2.0',
        "tessera_batch_size_sum 1.0",
        "tessera_cache_hits_total 1.0",
        "tessera_queue_length 0.0",
        "tessera_ready 1.0",
    ):
        assert line in text.splitlines()
    assert "made" not in text


def test_every_route_has_examples_in_the_api_documentation(answerer: EchoAnswerer) -> None:
    with serving(answerer, token="secret") as (client, _):
        openapi = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    schemas = openapi["components"]["schemas"]
    for name in ("VqaResponse", "Health", "ChatRequest", "ChatResponse", "ModelList", "SearchResponse", "ImageResponse"):
        assert schemas[name]["examples"], name
    assert len(openapi["paths"]) == 9
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            bodies = [body for answer in route["responses"].values() for body in answer.get("content", {}).values()]
            assert all("example" in body or "$ref" in body["schema"] for body in bodies), (path, method)
            assert all("example" in json.dumps(parameter) for parameter in route.get("parameters", [])), (path, method)
    search = openapi["paths"]["/text2image_search"]["post"]["requestBody"]["content"]
    assert all(kind["schema"]["examples"] for kind in search.values())
    assert openapi["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    form = schemas[openapi["paths"]["/vqa"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rsplit("/", 1)[1]]
    assert {name for name, field in form["properties"].items() if "examples" in json.dumps(field)} == {
        "question",
        "k",
        "rerank",
        *DecodingForm.__dataclass_fields__,
    }


def test_an_unreadable_index_is_503_and_questions_are_still_answered(answerer: EchoAnswerer) -> None:
    class Broken:
        def __len__(self) -> int:
            raise TesseraError("/home/someone/index: gone")

        def search_by_text(self, *_: object) -> None:
            raise TesseraError("/home/someone/index: gone")

    with serving(answerer) as (client, service):
        service.image_index = Broken()  # type: ignore[assignment]
        health = client.get("/health")
        response = client.post("/text2image_search", json={"text_query": "red"})
        assert ask(client, "red").status_code == 200
    assert (health.status_code, health.json()["image_library_size"]) == (200, None)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "search")
    assert "someone" not in response.text
