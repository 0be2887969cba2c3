"""The service over HTTP, with a planted answerer: batches, the queue, deadlines, clients that leave, refusals, counters."""

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest

from errors import TesseraError
from serving.engine import Engine
from tests.serving.conftest import CHAT, TIMEOUT_SECONDS, FakeAnswerer, ask, image_file, serving, wait_for

FORM = b"POST /vqa HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
ADDRESS = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image_file()).decode()}}


def hold(planted: FakeAnswerer, client: httpx2.Client, pool: ThreadPoolExecutor, question: str = "first") -> object:
    """A request that is being answered and keeps the answerer busy."""
    planted.let.clear()
    future = pool.submit(ask, client, question)
    assert planted.asked.acquire(timeout=TIMEOUT_SECONDS)
    return future


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(32)


def test_a_question_gets_its_answer_and_candidates(planted: FakeAnswerer) -> None:
    with serving(planted) as (client, _):
        found = ask(client, " red ", k=2)
    assert found.status_code == 200
    assert found.json() == {
        "status": "success",
        "question": "red",
        "answer": "red!",
        "candidates": [{"text": text, "log_prob": None, "mean_log_prob": None, "raw": text, "count": 1} for text in ("red!", "red?")],
    }


def test_questions_that_arrive_together_are_answered_together(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted) as (client, service):
        first = hold(planted, client, pool)
        others = [pool.submit(ask, client, f"question {i}") for i in range(5)]
        wait_for(lambda: service.batcher.waiting == 5)
        planted.let.set()
        assert [one.result().json()["answer"] for one in others] == [f"question {i}!" for i in range(5)]
        assert first.result().json()["answer"] == "first!"  # type: ignore[attr-defined]
    assert [len(call) for call in planted.calls] == [1, 5]


def test_other_candidates_are_another_batch(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted) as (client, service):
        hold(planted, client, pool)
        asked = [pool.submit(ask, client, str(k), k=k) for k in (2, 3, 2)]
        wait_for(lambda: service.batcher.waiting == 3)
        planted.let.set()
        assert {one.result().status_code for one in asked} == {200}
    assert sorted(sorted(call) for call in planted.calls[1:]) == [["2", "2"], ["3"]]


def test_one_that_cannot_be_answered_spoils_no_other(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted) as (client, service):
        hold(planted, client, pool)
        asked = [pool.submit(ask, client, question) for question in ("impossible", "possible")]
        wait_for(lambda: service.batcher.waiting == 2)
        planted.let.set()
        bad, good = (one.result() for one in asked)
    assert (bad.status_code, bad.json()["error"]["message"]) == (422, "it cannot be said")
    assert good.json()["answer"] == "possible!"


def test_a_full_queue_is_429_with_a_time_to_come_back(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted, max_batch=1, max_queue=2) as (client, service):
        hold(planted, client, pool)
        waiting = [pool.submit(ask, client, f"waits {i}") for i in range(2)]
        wait_for(lambda: service.batcher.waiting == 2)
        refused = ask(client, "too many")
        assert client.get("/health").status_code == 200, "who only looks is not counted"
        planted.let.set()
        assert {one.result().status_code for one in waiting} == {200}
        assert ask(client, "again").status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert not any("too many" in call for call in planted.calls)


def test_requests_that_are_still_being_read_are_counted_too(planted: FakeAnswerer) -> None:
    with serving(planted, max_batch=1, max_queue=1) as (client, service), ExitStack() as slow:
        for _ in range(2):
            one = slow.enter_context(socket.create_connection((client.base_url.host, client.base_url.port or 80)))
            one.sendall(FORM + b"Content-Length: 100\r\n\r\n--b\r\n")
        wait_for(lambda: service.in_progress == 2)
        refused = ask(client, "red")
        slow.close()
        wait_for(lambda: service.in_progress == 0)
        assert ask(client, "red").status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_deadline_is_504_and_what_waits_leaves_the_queue(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted, deadline_seconds=0.3) as (client, service):
        first = hold(planted, client, pool)
        late = ask(client, "late")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
        assert first.result().status_code == 504  # type: ignore[attr-defined]
        assert service.batcher.waiting == 0
        planted.let.set()
        wait_for(lambda: ask(client, "next").status_code == 200)
    assert not any("late" in call for call in planted.calls)


def test_a_client_that_hangs_up_leaves_the_queue(planted: FakeAnswerer, pool: ThreadPoolExecutor) -> None:
    with serving(planted) as (client, service):
        first = hold(planted, client, pool)
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as leaving:
            request = client.build_request("POST", "/vqa", files={"image": image_file(1)}, data={"question": "leaves"})
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            leaving.sendall(f"POST /vqa HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            wait_for(lambda: service.batcher.waiting == 1)
        wait_for(lambda: service.batcher.waiting == 0)
        planted.let.set()
        assert first.result().status_code == 200  # type: ignore[attr-defined]
        wait_for(lambda: service.in_progress == 0)
        assert 'tessera_requests_total{path="/vqa",status="499"} 1.0' in client.get("/metrics").text
    assert planted.calls == [["first"]]


def test_the_same_question_about_the_same_image_is_answered_once(planted: FakeAnswerer) -> None:
    with serving(planted) as (client, _):
        found = [ask(client, "red"), ask(client, "red"), ask(client, "red", image_file(1)), ask(client, "red", k=2), ask(client, "blue")]
    assert [one.headers["X-Cache"] for one in found] == ["miss", "hit", "miss", "miss", "miss"]
    assert found[0].json() == found[1].json()
    assert len(planted.calls) == 4


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
def test_a_conversation_is_answered_once_for_each_way_to_ask(planted: FakeAnswerer, changes: dict[str, object], calls: int) -> None:
    """Asked once plainly, and twice with changes."""
    plain = {"model": "planted", "messages": [{"role": "user", "content": "say it"}]}
    with serving(planted) as (client, _):
        for asked in (plain, {**plain, **changes}, {**plain, **changes}):
            found = client.post("/v1/chat/completions", json=asked)
            assert found.status_code == 200, found.text
        if "seed" in changes:
            assert client.post("/v1/chat/completions", json={**plain, **changes, "seed": 3}).status_code == 200
            calls += 1
    assert len(planted.calls) == calls


def test_a_long_conversation_is_known_again_by_little(planted: FakeAnswerer) -> None:
    with serving(planted) as (client, service):
        for text in ("x", "y", "x"):
            asked = {"model": "planted", "messages": [{"role": "user", "content": text * 4000}]}
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
        kept = [len(repr(key)) for key in service.cache._entries]
    assert (len(planted.calls), len(kept)) == (2, 2)
    assert max(kept) < 200


def test_the_cache_can_be_off(planted: FakeAnswerer) -> None:
    with serving(planted, cache_mib=0.0) as (client, _):
        assert [ask(client, "red").headers["X-Cache"] for _ in range(2)] == ["miss", "miss"]


def test_until_the_models_are_loaded_everything_is_503(planted: FakeAnswerer) -> None:
    let = threading.Event()

    def load(plan: object) -> Engine:
        assert let.wait(TIMEOUT_SECONDS)
        return Engine(plan, planted, None)  # type: ignore[arg-type]

    with serving(planted, load=load) as (client, service):
        before, asked = client.get("/health"), ask(client, "red")
        let.set()
        wait_for(lambda: service.engine is not None)
        after = client.get("/health")
    assert before.status_code == 503
    assert before.json() == {
        "status": "loading", "vqa_model_loaded": False, "clip_model_loaded": False, "image_library_size": 0, "device": None,
        "gpu_memory_allocated_gb": 0.0, "gpu_memory_reserved_gb": 0.0,
    }  # fmt: skip
    assert (asked.status_code, asked.json()["error"]["code"], asked.headers["Retry-After"]) == (503, "loading", "5")
    assert (after.status_code, after.json()["status"], after.json()["vqa_model_loaded"]) == (200, "ok", True)


def test_a_failure_of_the_server_is_500_without_a_traceback(planted: FakeAnswerer) -> None:
    planted.error = RuntimeError("secret of /home/someone")
    with serving(planted) as (client, _):
        found = ask(client, "red")
        planted.error = None
        assert ask(client, "red").status_code == 200
    assert found.status_code == 500
    assert found.json() == {
        "status": "error",
        "error": {
            "message": "the server failed; its log has the request id", "type": "server_error", "param": None, "code": "internal",
        },
        "request_id": found.headers["X-Request-ID"],
    }  # fmt: skip


def test_a_failure_is_logged_once_with_the_id_of_its_request(planted: FakeAnswerer, caplog: pytest.LogCaptureFixture) -> None:
    planted.error = RuntimeError("out of memory")
    with serving(planted) as (client, _):
        found = ask(client, "red")
    said = [record.getMessage() for record in caplog.records if record.name == "tessera.serve" and record.levelname == "ERROR"]
    assert said == [
        "a batch of 1 failed: RuntimeError: out of memory",
        f"request {found.json()['request_id']} failed: RuntimeError: out of memory",
    ]
    assert not [record for record in caplog.records if record.name.startswith("uvicorn") and record.levelname == "ERROR"]


def test_a_service_whose_batcher_breaks_ends_and_says_why(planted: FakeAnswerer) -> None:
    ended = threading.Event()
    with serving(planted) as (client, service):
        service.on_failure = ended.set

        def broken(size: int, seconds: float) -> None:
            raise ArithmeticError(f"{size} in {seconds >= 0}")

        service.batcher.on_batch = broken
        assert ask(client, "red").status_code == 200
        assert ended.wait(TIMEOUT_SECONDS)
    assert repr(service.failure) == "ArithmeticError('1 in True')"


@pytest.mark.parametrize("path", ["/nothing", "/vqa", "/v1/chat/completions"])
def test_every_failure_is_json_with_the_id_of_the_request(planted: FakeAnswerer, path: str) -> None:
    with serving(planted) as (client, _):
        found = client.get(path)
        own = client.get(path, headers={"X-Request-ID": "mine-1"})
        forged = client.get(path, headers={"X-Request-ID": "x" * 65})
    assert found.status_code in (404, 405)
    assert re.fullmatch("[0-9a-f]{32}", found.json()["request_id"])
    assert found.json()["error"]["message"]
    assert own.json()["request_id"] == own.headers["X-Request-ID"] == "mine-1"
    assert forged.json()["request_id"] != "x" * 65


def test_counters_are_for_prometheus(planted: FakeAnswerer) -> None:
    with serving(planted) as (client, _):
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


def test_every_route_shows_examples(planted: FakeAnswerer) -> None:
    with serving(planted, token="secret") as (client, _):
        found = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    schemas = found["components"]["schemas"]
    for name in ("VqaResponse", "Health", "ChatRequest", "ChatResponse", "ModelList", "SearchResponse", "ImageResponse"):
        assert schemas[name]["examples"], name
    assert len(found["paths"]) == 8
    for path, methods in found["paths"].items():
        for method, route in methods.items():
            bodies = [said for answer in route["responses"].values() for said in answer.get("content", {}).values()]
            assert all("example" in said or "$ref" in said["schema"] for said in bodies), (path, method)
            assert all("example" in json.dumps(parameter) for parameter in route.get("parameters", [])), (path, method)
    search = found["paths"]["/text2image_search"]["post"]["requestBody"]["content"]
    assert all(kind["schema"]["examples"] for kind in search.values())
    assert found["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    form = schemas[found["paths"]["/vqa"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rsplit("/", 1)[1]]
    assert {name for name, field in form["properties"].items() if "examples" in json.dumps(field)} == {"question", "k", "rerank"}


def test_an_index_that_cannot_be_read_is_the_servers_failure_and_questions_are_answered(planted: FakeAnswerer) -> None:
    class Broken:
        def __len__(self) -> int:
            raise TesseraError("/home/someone/index: gone")

        def search_by_text(self, *_: object) -> None:
            raise TesseraError("/home/someone/index: gone")

    with serving(planted) as (client, service):
        service.image_index = Broken()  # type: ignore[assignment]
        health = client.get("/health")
        found = client.post("/text2image_search", json={"text_query": "red"})
        assert ask(client, "red").status_code == 200
    assert (health.status_code, health.json()["image_library_size"]) == (200, None)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "search")
    assert "someone" not in found.text


def said(lines: Iterator[str]) -> Iterator[str]:
    """Contents of the events of a stream."""
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")


def test_pieces_are_sent_as_they_are_made(planted: FakeAnswerer) -> None:
    planted.let.clear()
    with serving(planted) as (client, _), client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        pieces = said(response.iter_lines())
        assert [next(pieces), next(pieces)] == ["", "one"]
        assert planted.streamed == ["one"]
        planted.let.set()
        assert "".join(pieces) == " two three"
    assert response.headers["Content-Type"].startswith("text/event-stream")


def test_nothing_more_is_made_for_a_client_that_leaves_a_stream(planted: FakeAnswerer) -> None:
    planted.let.clear()
    with serving(planted) as (client, service):
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            pieces = said(response.iter_lines())
            assert [next(pieces), next(pieces)] == ["", "one"]
        wait_for(lambda: service.in_progress == 0)
        planted.let.set()
        assert ask(client, "next").json()["answer"] == "next!"
    assert planted.streamed == ["one", " two"]


def test_a_stream_that_takes_too_long_ends_with_an_error(planted: FakeAnswerer) -> None:
    planted.let.clear()
    with serving(planted, deadline_seconds=1.0) as (client, _):
        lines = [line for line in client.post("/v1/chat/completions", json=CHAT).text.splitlines() if line]
        planted.let.set()
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline"
