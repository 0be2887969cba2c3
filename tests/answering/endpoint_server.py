"""A small OpenAI-compatible server in a process of its own: `python endpoint_server.py` prints its port.

An answer is a function of the messages, the temperature, the seed and the index of the choice. The model name says how the server
misbehaves: options joined by `+`, such as `429x2+no-logprobs`. GET returns all requests that it received. It has no reference answers.
"""

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("red", "blue", "green", "two", "yes", "no", "a disc", "Red.")

seen: list[dict[str, Any]] = []
tries: Counter[str] = Counter()
num_concurrent: Counter[str] = Counter()
max_concurrent: Counter[str] = Counter()
lock = threading.Lock()
three_requests = threading.Barrier(3, timeout=60)


def digest(*values: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()[:4], "big")


def choice(body: dict[str, Any], index: int, parts: list[str]) -> dict[str, Any]:
    number = digest(body["messages"], body["temperature"], body.get("seed"), index)
    text = WORDS[number % len(WORDS)]
    tokens = [text[:2], text[2:]]
    log_probs = [-(number % 7 + 1) / 10, -0.25]
    result: dict[str, Any] = {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": f" {text} "}}
    if body.get("logprobs") and "no-logprobs" not in parts and not ("some-logprobs" in parts and body["temperature"]):
        result["logprobs"] = {"content": [{"token": t, "logprob": p, "top_logprobs": []} for t, p in zip(tokens, log_probs, strict=True)]}
    if "filtered" in parts:
        result |= {"finish_reason": "content_filter", "message": {"role": "assistant", "content": None}}
    if "endless-logprobs" in parts:
        result["logprobs"]["content"][0]["logprob"] = float("-inf")
    return result


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, {"requests": seen, "max_concurrent": max_concurrent})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["model"].split("+")
        with lock:
            num_concurrent[body["model"]] += 1
            max_concurrent[body["model"]] = max(max_concurrent[body["model"]], num_concurrent[body["model"]])
            tries[str(digest(body))] += 1
            seen.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
        try:
            self.answer(body, parts)
        finally:
            with lock:
                num_concurrent[body["model"]] -= 1

    def answer(self, body: dict[str, Any], parts: list[str]) -> None:
        attempt = tries[str(digest(body))]
        text = json.dumps(body["messages"])
        if "together" in parts:
            three_requests.wait()
        for part in parts:
            status, _, times = part.partition("x")
            if status.isdigit() and attempt <= int(times or "1000"):
                key = self.headers["Authorization"].removeprefix("Bearer ")
                message = f"status {status}, asked with {key}"
                code = "insufficient_quota" if "quota" in parts else None
                after = {"Retry-After": "7"} if "says-when" in parts else {}
                return self.reply(int(status), {"error": {"message": message, "type": "planted", "code": code}}, after)
        if "breaks-on-broken" in parts and "broken" in text:
            return self.reply(400, {"error": {"message": "I cannot see that", "type": "planted"}})
        if "hangs-once" in parts and attempt == 1:
            threading.Event().wait(30)
            return None
        if "html" in parts:
            return self.send(200, "text/html", b"<html>no model here</html>")
        if body.get("stream"):
            return self.stream(body, parts)
        count = 0 if "no-choices" in parts else 1 if "ignores-n" in parts else body.get("n", 1)
        choices = [choice(body, index, parts) for index in range(count)]
        return self.reply(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": choices,
                "usage": {"total_tokens": 9},
            },
        )

    def stream(self, body: dict[str, Any], parts: list[str]) -> None:
        result = choice(body, 0, parts)
        content, log_probs = result["message"]["content"], result.get("logprobs", {}).get("content", [])
        pieces = [content[:3], content[3:], ""]
        lines = []
        for i, piece in enumerate(pieces):
            chunk: dict[str, Any] = {"index": 0, "delta": {"content": piece}, "finish_reason": "stop" if i == 2 else None}
            if log_probs and i < 2:
                chunk["logprobs"] = {"content": [log_probs[i]]}
            lines.append({"id": "1", "object": "chat.completion.chunk", "created": 0, "model": body["model"], "choices": [chunk]})
        text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
        self.send(200, "text/event-stream", text.encode() if "cut" in parts else f"{text}data: [DONE]\n\n".encode())

    def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, "application/json", json.dumps(value).encode(), headers)

    def send(self, status: int, kind: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
