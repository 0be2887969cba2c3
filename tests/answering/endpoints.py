"""Start the local OpenAI-compatible server, and helpers of the endpoint tests."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from answering.answerer_factory import build_answerer
from answering.config import DecodingConfig, OpenAiSystem
from answering.systems.openai_endpoint.openai_answerer import EndpointAnswerer

KEY = "sk-planted-0123456789"
THREE = DecodingConfig(num_candidates=3, max_new_tokens=8)
GREEDY = DecodingConfig(strategy="greedy", max_new_tokens=8)


class Server:
    """The process of endpoint_server.py, and the requests that it received."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("endpoint_server.py")
        self.process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def log(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url) as reply:
            log: dict[str, Any] = json.load(reply)
        return log

    def sent(self, model: str) -> list[dict[str, Any]]:
        """The bodies of the requests to a model."""
        return [request["body"] for request in self.log()["requests"] if request["body"]["model"] == model]


def load(system: OpenAiSystem) -> EndpointAnswerer:
    answerer = build_answerer(system, checkpoint_folder=Path("nowhere"))
    assert isinstance(answerer, EndpointAnswerer)
    return answerer
