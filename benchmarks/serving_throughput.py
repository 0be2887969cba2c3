"""What answering together is worth: the same questions from many clients at once and from one client after the other, put by
turns to one real server."""

import io
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks.benchmark_report import Machine, Report, number
from benchmarks.timing import Ratio, by_turns
from dataset.synthetic.question_phrasing import ask_several
from dataset.synthetic.scene import compose
from dataset.synthetic.scene_renderer import draw
from errors import TesseraError

COMMAND = Path(__file__).parent.parent / "tools" / "serve.py"
START_SECONDS = 900.0
"""Longest time that loading the models may take."""
COLUMNS = ("clients", "questions/s", "median ms", "slowest ms", "same answers", "faster than one by one")


@dataclass(frozen=True, slots=True)
class Effort:
    """questions: how many a block asks; clients: how many ask at once; rounds: blocks of each way."""

    questions: int
    clients: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Question:
    """A picture as a JPEG file, and what is asked about it."""

    picture: bytes
    text: str


@dataclass
class Way:
    """So many clients. seconds: of each answer of all blocks; answers: of the last block."""

    clients: int
    address: str
    questions: Sequence[Question]
    seconds: list[float]
    answers: list[str]

    def block(self) -> float:
        """Ask all questions, `clients` at a time; the seconds that took."""
        sessions = threading.local()

        def ask(question: Question) -> tuple[str, float]:
            session = sessions.__dict__.setdefault("session", requests.Session())
            begun = time.perf_counter()
            fields = {"files": {"image": question.picture}, "data": {"question": question.text}}
            response = session.post(f"{self.address}/vqa", timeout=START_SECONDS, **fields)
            if not response.ok:
                raise TesseraError(f"the server answers {response.status_code}: {response.text[:300]}")
            return response.json()["answer"], time.perf_counter() - begun

        with ThreadPoolExecutor(self.clients) as clients:
            begun = time.perf_counter()
            found = list(clients.map(ask, self.questions))
            took = time.perf_counter() - begun
        self.answers = [answer for answer, _ in found]
        self.seconds += [seconds for _, seconds in found]
        return took


def measure(config: Path, overrides: Sequence[str], effort: Effort) -> Report:
    """Start `tools/serve.py` with a configuration and ask it. Its answer cache and picture search are off.

    Raises TesseraError where it does not start or does not answer.
    """
    with _server(config, [*overrides, f"serve.max_queue={2 * effort.clients}"]) as address:
        device = requests.get(f"{address}/health", timeout=10).json()["device"]
        questions = made_up(effort.questions)
        ways = {str(n): Way(n, address, questions, [], []) for n in (1, effort.clients)}
        ways[str(effort.clients)].block()
        for way in ways.values():
            way.seconds.clear()
        seconds = by_turns({name: way.block for name, way in ways.items()}, effort.rounds)
    return _report(config, list(ways.values()), seconds, effort, Machine.here(torch.device(device)))


def made_up(count: int) -> list[Question]:
    """Questions about drawn scenes, English and Chinese by turns, each about a picture of its own."""
    questions = []
    for i in range(count):
        scene, file = compose(0, "test", i), io.BytesIO()
        draw(scene).save(file, "JPEG", quality=90)
        text = ask_several(scene, "en" if i % 2 else "zh", scene.rng("benchmark"), 1)[0].text
        questions.append(Question(file.getvalue(), text))
    return questions


@contextmanager
def _server(config: Path, overrides: Sequence[str]) -> Iterator[str]:
    """The address of a server that answers; it ends with the context."""
    command = [
        sys.executable,
        str(COMMAND),
        "--config",
        str(config),
        *overrides,
        "serve.port=0",
        "serve.cache_mib=0.0",
        "serve.search=false",
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, encoding="utf-8")
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = line.removeprefix("listening on ").split(" ")[0]
            if not line:
                process.wait()
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline and not _answers(address):
                time.sleep(0.1)
            if process.poll() is not None or not _answers(address):
                log.seek(0)
                raise TesseraError(f"the server did not start: {(log.read().strip().splitlines() or ['it says nothing'])[-1]}")
            yield address
        finally:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _answers(address: str) -> bool:
    return requests.get(f"{address}/health", timeout=10).status_code == 200


def _report(config: Path, ways: list[Way], seconds: dict[str, list[float]], effort: Effort, machine: Machine) -> Report:
    alone, rows, results = ways[0], [], []
    for way in ways:
        own = seconds[str(way.clients)]
        ratio = None if way is alone else Ratio.of(own, seconds[str(alone.clients)])
        same = sum(a == b for a, b in zip(way.answers, alone.answers, strict=True))
        result: dict[str, Any] = {
            "clients": way.clients,
            "questions_per_second": effort.questions / statistics.median(own),
            "median_ms": 1000 * statistics.median(way.seconds),
            "slowest_ms": 1000 * max(way.seconds),
            "same_answers": same,
            "seconds": own,
            "faster_by": None if ratio is None else asdict(ratio),
        }
        results.append(result)
        cells = [number(result[name]) for name in ("questions_per_second", "median_ms", "slowest_ms")]
        rows.append([str(way.clients), *cells, f"{same} of {effort.questions}", number(None) if ratio is None else str(ratio)])
    facts = {"a block": f"{effort.questions} questions about pictures of their own; {effort.rounds} blocks of each way, by turns"}
    measured = {"machine": machine.plain(), "effort": asdict(effort), "results": results}
    return Report(f"Answers over HTTP, {config.stem}", {**machine.facts(), **facts}, COLUMNS, rows, measured)
