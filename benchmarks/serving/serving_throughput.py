"""Throughput of the HTTP service: the same questions from many concurrent clients and from a single client, in interleaved blocks."""

import io
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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

COMMAND = Path(__file__).parent.parent.parent / "tools" / "serve.py"
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
class Block:
    """A block of questions to a server.

    Args:
        clients: number of concurrent clients.
        ask: asks a question in a client's session; returns the answer. Raises TesseraError.
        questions: questions of the block.
        seconds: latency of each request of all runs.
        answers: answers of the last run.
    """

    clients: int
    ask: Callable[[requests.Session, Question], str]
    questions: Sequence[Question]
    seconds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def run(self) -> float:
        """Ask all questions, `clients` at a time; returns the seconds."""
        sessions = threading.local()

        def timed_answer(question: Question) -> tuple[str, float]:
            session = sessions.__dict__.setdefault("session", requests.Session())
            start_time = time.perf_counter()
            return self.ask(session, question), time.perf_counter() - start_time

        with ThreadPoolExecutor(self.clients) as clients:
            start_time = time.perf_counter()
            answered = list(clients.map(timed_answer, self.questions))
            elapsed = time.perf_counter() - start_time
        self.answers = [answer for answer, _ in answered]
        self.seconds += [seconds for _, seconds in answered]
        return elapsed

    def figures(self, seconds: list[float], reference: "Block", ratio: Ratio | None) -> dict[str, Any]:
        """What was measured in all rounds.

        Args:
            seconds: of each round.
            reference: whose answers are compared with.
            ratio: how much faster the block was than another one, if it is compared with one.
        """
        return {
            "clients": self.clients,
            "questions_per_second": len(self.questions) / statistics.median(seconds),
            "median_ms": 1000 * statistics.median(self.seconds),
            "slowest_ms": 1000 * max(self.seconds),
            "same_answers": sum(a == b for a, b in zip(self.answers, reference.answers, strict=True)),
            "seconds": seconds,
            "faster_by": None if ratio is None else asdict(ratio),
        }


def post(session: requests.Session, address: str, **content: Any) -> Any:
    """The JSON response to a POST request. Raises TesseraError if it is an error."""
    response = session.post(address, timeout=START_SECONDS, **content)
    if not response.ok:
        raise TesseraError(f"the server responded with status {response.status_code}: {response.text[:300]}")
    return response.json()


def run_interleaved(blocks: Mapping[str, Block], rounds: int) -> dict[str, list[float]]:
    """Warm up, then run all blocks once per round; returns the seconds of each block per round."""
    for block in blocks.values():
        block.run()
        block.seconds.clear()
    return time_interleaved({name: block.run for name, block in blocks.items()}, rounds)


def measure(config: Path, overrides: Sequence[str], workload: Workload) -> BenchmarkReport:
    """Start `tools/serve.py` and send requests to it.

    Args:
        config: configuration file.
        overrides: key=value overrides.
        workload: number of questions, clients and rounds.

    Raises:
        TesseraError: the server does not start or a request fails.
    """
    with our_server(config, [*overrides, f"serve.max_queue={2 * workload.clients}"]) as address:

        def ask(session: requests.Session, question: Question) -> str:
            answer: str = post(session, f"{address}/vqa", files={"image": question.image}, data={"question": question.text})["answer"]
            return answer

        device = requests.get(f"{address}/health", timeout=10).json()["device"]
        questions = synthetic_questions(workload.questions)
        blocks = {str(n): Block(n, ask, questions) for n in (1, workload.clients)}
        seconds = run_interleaved(blocks, workload.rounds)
    return _report(config, list(blocks.values()), seconds, workload, Machine.current(torch.device(device)))


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
def our_server(config: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Context with the URL of a running `tools/serve.py`, which is terminated at the end. Its answer cache and image search are off."""
    settings = [*overrides, "serve.port=0", "serve.cache_mib=0.0", "serve.search=false"]
    command = [sys.executable, str(COMMAND), "--config", str(config), *settings]
    with started_server(command, re.compile(r"^listening on (\S+)", re.MULTILINE), "/health") as address:
        yield address


@contextmanager
def started_server(command: Sequence[str], printed: re.Pattern[str], ready: str, folder: Path | None = None) -> Iterator[str]:
    """Context with the URL of a server process, which is terminated at the end.

    Args:
        command: starts the server.
        printed: its group is the URL in what the process prints.
        ready: a path that is answered with status 200 once the models are loaded.
        folder: the process runs there; None: in the current one.

    Raises:
        TesseraError: the server does not start.
    """
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                found = printed.search(output.read_text(encoding="utf-8", errors="replace"))
                if found and _answers(found[1] + ready):
                    yield found[1]
                    return
                time.sleep(0.1)
            lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise TesseraError(f"the server did not start: {(lines or ['no output'])[-1]}")
        finally:
            process.terminate()
            process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=10).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        # It does not listen yet, or is busy loading.
        return False


def _report(config: Path, variants: list[Block], seconds: dict[str, list[float]], workload: Workload, machine: Machine) -> BenchmarkReport:
    single_client, rows, results = variants[0], [], []
    for variant in variants:
        own = seconds[str(variant.clients)]
        ratio = None if variant is single_client else Ratio.of(own, seconds[str(single_client.clients)])
        result = variant.figures(own, single_client, ratio)
        results.append(result)
        cells = [format_number(result[name]) for name in ("questions_per_second", "median_ms", "slowest_ms")]
        rows.append(
            [
                str(variant.clients),
                *cells,
                f"{result['same_answers']} of {workload.questions}",
                format_number(None) if ratio is None else str(ratio),
            ]
        )
    facts = {
        "a block": f"{workload.questions} questions about different images; {workload.rounds} interleaved blocks per number of clients"
    }
    measured = {"machine": asdict(machine), "effort": asdict(workload), "results": results}
    return BenchmarkReport(f"Answers over HTTP, {config.stem}", {**machine.facts(), **facts}, COLUMNS, rows, measured)
