"""Throughput of the HTTP service: the same questions from many concurrent clients and from a single client, in interleaved blocks."""

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

from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.timing import Ratio, time_interleaved
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import generate_scene
from dataset.synthetic.scene_renderer import render
from errors import TesseraError

COMMAND = Path(__file__).parent.parent / "tools" / "serve.py"
START_SECONDS = 900.0
"""Timeout for loading the models, and of a request."""
COLUMNS = ("clients", "questions/s", "median ms", "slowest ms", "same answers", "faster than one client")


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work.

    Args:
        questions: questions per block.
        clients: number of concurrent clients.
        rounds: blocks per number of clients.
    """

    questions: int
    clients: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its image as a JPEG file."""

    image: bytes
    text: str


@dataclass
class Variant:
    """A number of concurrent clients.

    Args:
        clients: number of clients.
        address: URL of the server.
        questions: questions of a block.
        seconds: latency of each request of all blocks.
        answers: answers of the last block.
    """

    clients: int
    address: str
    questions: Sequence[Question]
    seconds: list[float]
    answers: list[str]

    def block(self) -> float:
        """Ask all questions, `clients` at a time; returns the seconds."""
        sessions = threading.local()

        def ask(question: Question) -> tuple[str, float]:
            session = sessions.__dict__.setdefault("session", requests.Session())
            start_time = time.perf_counter()
            fields = {"files": {"image": question.image}, "data": {"question": question.text}}
            response = session.post(f"{self.address}/vqa", timeout=START_SECONDS, **fields)
            if not response.ok:
                raise TesseraError(f"the server responded with status {response.status_code}: {response.text[:300]}")
            return response.json()["answer"], time.perf_counter() - start_time

        with ThreadPoolExecutor(self.clients) as clients:
            start_time = time.perf_counter()
            responses = list(clients.map(ask, self.questions))
            elapsed = time.perf_counter() - start_time
        self.answers = [answer for answer, _ in responses]
        self.seconds += [seconds for _, seconds in responses]
        return elapsed


def measure(config: Path, overrides: Sequence[str], workload: Workload) -> BenchmarkReport:
    """Start `tools/serve.py` and send requests to it. Its answer cache and image search are off.

    Args:
        config: configuration file.
        overrides: key=value overrides.
        workload: number of questions, clients and rounds.

    Raises:
        TesseraError: the server does not start or a request fails.
    """
    with _server(config, [*overrides, f"serve.max_queue={2 * workload.clients}"]) as address:
        device = requests.get(f"{address}/health", timeout=10).json()["device"]
        questions = synthetic_questions(workload.questions)
        variants = {str(n): Variant(n, address, questions, [], []) for n in (1, workload.clients)}
        variants[str(workload.clients)].block()
        for variant in variants.values():
            variant.seconds.clear()
        seconds = time_interleaved({name: variant.block for name, variant in variants.items()}, workload.rounds)
    return _report(config, list(variants.values()), seconds, workload, Machine.current(torch.device(device)))


def synthetic_questions(count: int) -> list[Question]:
    """Questions about synthetic scenes, English and Chinese alternately, each about a different image."""
    questions = []
    for i in range(count):
        scene, file = generate_scene(0, "test", i), io.BytesIO()
        render(scene).save(file, "JPEG", quality=90)
        text = sample_questions(scene, "en" if i % 2 else "zh", scene.rng("benchmark"), 1)[0].text
        questions.append(Question(file.getvalue(), text))
    return questions


@contextmanager
def _server(config: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Context with the URL of a running server, which is terminated at the end."""
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
                raise TesseraError(f"the server did not start: {(log.read().strip().splitlines() or ['no output'])[-1]}")
            yield address
        finally:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _answers(address: str) -> bool:
    return requests.get(f"{address}/health", timeout=10).status_code == 200


def _report(
    config: Path, variants: list[Variant], seconds: dict[str, list[float]], workload: Workload, machine: Machine
) -> BenchmarkReport:
    single_client, rows, results = variants[0], [], []
    for variant in variants:
        own = seconds[str(variant.clients)]
        ratio = None if variant is single_client else Ratio.of(own, seconds[str(single_client.clients)])
        num_same = sum(a == b for a, b in zip(variant.answers, single_client.answers, strict=True))
        result: dict[str, Any] = {
            "clients": variant.clients,
            "questions_per_second": workload.questions / statistics.median(own),
            "median_ms": 1000 * statistics.median(variant.seconds),
            "slowest_ms": 1000 * max(variant.seconds),
            "same_answers": num_same,
            "seconds": own,
            "faster_by": None if ratio is None else asdict(ratio),
        }
        results.append(result)
        cells = [format_number(result[name]) for name in ("questions_per_second", "median_ms", "slowest_ms")]
        rows.append(
            [str(variant.clients), *cells, f"{num_same} of {workload.questions}", format_number(None) if ratio is None else str(ratio)]
        )
    facts = {
        "a block": f"{workload.questions} questions about different images; {workload.rounds} interleaved blocks per number of clients"
    }
    measured = {"machine": machine.to_dict(), "effort": asdict(workload), "results": results}
    return BenchmarkReport(f"Answers over HTTP, {config.stem}", {**machine.facts(), **facts}, COLUMNS, rows, measured)
