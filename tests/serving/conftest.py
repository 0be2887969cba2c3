"""Running services: a fake answerer with a real server in this process, and `tools/serve.py` as a subprocess."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
import yaml
from PIL import Image

from answering.config import CheckpointSystem, RerankConfig
from answering.protocol import Decoding
from model.siglip_qwen.processor import Processor
from serving.config import ServeConfig
from serving.engine import Engine, LoadPlan
from serving.server import server_config
from serving.service import Service
from tests.fakes import TIMEOUT_SECONDS as TIMEOUT_SECONDS
from tests.fakes import EchoAnswerer
from tests.untrained import write_checkpoint

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Say it."}], "stream": True}
"""A streamed chat request."""
WEB = httpx2.Client(timeout=TIMEOUT_SECONDS)
"""Client of servers that run as subprocesses."""


def image_file(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """The bytes of an image file with random pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


@contextmanager
def serving(
    answerer: EchoAnswerer, *, token: str | None = None, load: Any = None, plan: LoadPlan | None = None, **settings: Any
) -> Iterator[tuple[httpx2.Client, Service]]:
    """A service with the fake answerer on a free port, and its client. Waits until it is ready, unless `load` is given."""
    system = CheckpointSystem(name="fake", kind="checkpoint")
    plan = plan or LoadPlan("fake", system, Path("none"), Path("none"), RerankConfig(), Decoding(strategy="greedy", num_candidates=1))
    config = ServeConfig(**{"port": 0, "max_wait_ms": 0.0, **settings})
    service = Service(config, plan, load=load or (lambda plan: Engine(plan, answerer, None)), token=token)
    server = uvicorn.Server(server_config(service))
    server_socket = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([server_socket],), daemon=True)
    thread.start()
    wait_for(lambda: server.started and (load is not None or service.engine is not None))
    port = server_socket.getsockname()[1]
    try:
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS, limits=httpx2.Limits(max_connections=100)
        ) as client:
            yield client, service
    finally:
        answerer.released.set()
        server.should_exit = True
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()


def wait_for(condition: Any) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def ask(client: httpx2.Client, question: str, data: bytes | None = None, **fields: Any) -> httpx2.Response:
    """POST /vqa."""
    return client.post("/vqa", files={"image": ("a.png", image_file() if data is None else data)}, data={"question": question, **fields})


@pytest.fixture
def answerer() -> EchoAnswerer:
    """An answerer that answers at once until `released` is cleared."""
    return EchoAnswerer()


@pytest.fixture(scope="session")
def experiment(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the configuration trial.yaml and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("served")
    path = folder / "checkpoints/trial/checkpoint-1"
    write_checkpoint(path, parts, processor)
    config = {
        "name": "trial",
        "decoding": {"num_candidates": 3, "strategy": "beam", "max_new_tokens": 4},
        "rerank": {"clip": str(parts / "clip")},
        "eval": {"systems": [{"name": "qwen", "kind": "qwen3_vl", "path": str(parts / "qwen3_vl"), "quantization": "none"}]},
        "serve": {"port": 0},
    }
    (folder / "trial.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


class Process:
    """`python tools/serve.py` in a folder. Its output is written to `log`."""

    def __init__(self, folder: Path, log: Path, *overrides: str, **environment: str):
        self.log = log
        command = [sys.executable, str(Path(__file__).parents[2] / "tools/serve.py"), "--config", "trial.yaml", *overrides]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment}
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def address(self) -> str:
        """Base URL, once it listens."""
        wait_for(lambda: "listening on http" in self.text or self.process.poll() is not None)
        return self.text.split("listening on ", 1)[1].split()[0]

    def ready(self) -> str:
        """Base URL, once the models are loaded."""
        address = self.address()
        wait_for(lambda: WEB.get(f"{address}/health").status_code == 200)
        return address

    def end(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_SECONDS)


@contextmanager
def process(folder: Path, log: Path, *overrides: str, **environment: str) -> Iterator[Process]:
    """Run the command and kill it afterwards."""
    running = Process(folder, log, *overrides, **environment)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
