"""Throughput of the HTTP service: the same questions from many concurrent clients and from a single client, in interleaved blocks.

With `measure_against_transformers` beside `transformers serve`: the same export, the same requests to OpenAI's API, greedy decoding.
"""

import base64
import io
import json
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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
import torch
import transformers

import config as configuration
from answering.answerer_factory import default_device
from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number, text_or_dash
from benchmarks.peers.peer_environment import peer_python
from benchmarks.timing import OURS, Ratio, time_interleaved
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import generate_scene
from dataset.synthetic.scene_renderer import render
from errors import TesseraError, UsageError
from model.checkpoint_manifest import latest_checkpoint
from model.family import family

K = TypeVar("K")

COMMAND = Path(__file__).parent.parent.parent / "tools" / "serve.py"
START_SECONDS = 900.0
"""Timeout for loading the models, and of a request."""
COLUMNS = ("clients", "questions/s", "median ms", "slowest ms", "same answers", "faster than one client")

MAX_TOKENS = 16
"""Largest number of tokens of an answer."""
THEIRS = "transformers serve"
SYSTEM = "export"
"""Name of the export at our server."""
START = "from transformers.cli.transformers import main; main()"
LISTENING = re.compile(r"running on (http://\S+)")
TRANSFORMERS_COLUMNS = ("clients", "server", "questions/s", "of each round", *COLUMNS[2:5], "ours is faster by")


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work: questions per block, number of concurrent clients, and blocks per number of clients."""

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
        """What was measured in all rounds: their seconds, answers as those of the reference, and how much faster the block was."""
        return {
            "clients": self.clients,
            "questions_per_second": len(self.questions) / statistics.median(seconds),
            "median_ms": 1000 * statistics.median(self.seconds),
            "slowest_ms": 1000 * max(self.seconds),
            "same_answers": sum(a == b for a, b in zip(self.answers, reference.answers, strict=True)),
            "seconds": seconds,
            "faster_by": None if ratio is None else asdict(ratio),
        }

    def cells(self, figures: dict[str, Any], ratio: Ratio | None) -> list[str]:
        """Columns of a table: questions/s, median and slowest ms, answers as those of the reference, ratio."""
        numbers = [format_number(figures[name]) for name in ("questions_per_second", "median_ms", "slowest_ms")]
        return [*numbers, f"{figures['same_answers']} of {len(self.questions)}", text_or_dash(ratio)]


def post(session: requests.Session, address: str, **content: Any) -> Any:
    """The JSON response to a POST request. Raises TesseraError if it is an error."""
    response = session.post(address, timeout=START_SECONDS, **content)
    if not response.ok:
        raise TesseraError(f"the server responded with status {response.status_code}: {response.text[:300]}")
    return response.json()


def run_interleaved(blocks: Mapping[K, Block], rounds: int) -> dict[K, list[float]]:
    """Warm up, then run all blocks once per round; returns the seconds of each block per round."""
    for block in blocks.values():
        block.run()
        block.seconds.clear()
    return time_interleaved({name: block.run for name, block in blocks.items()}, rounds)


def measure(config_path: Path, overrides: list[str], workload: Workload) -> BenchmarkReport:
    """Start `tools/serve.py` and send requests to it. Raises TesseraError if it does not start or a request fails."""
    with our_server(config_path, [*overrides, f"serve.max_queue={2 * workload.clients}"]) as address:

        def ask(session: requests.Session, question: Question) -> str:
            answer: str = post(session, f"{address}/vqa", files={"image": question.image}, data={"question": question.text})["answer"]
            return answer

        device = requests.get(f"{address}/health", timeout=10).json()["device"]
        questions = synthetic_questions(workload.questions)
        blocks = {str(n): Block(n, ask, questions) for n in (1, workload.clients)}
        seconds = run_interleaved(blocks, workload.rounds)
    return _report(config_path, blocks, seconds, workload, Machine.current(torch.device(device)))


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
    with started_server(command, re.compile(r"^listening on (\S+)", re.MULTILINE)) as address:
        yield address


@contextmanager
def started_server(command: Sequence[str], printed: re.Pattern[str], folder: Path | None = None) -> Iterator[str]:
    """Context with the URL of a server process, which is terminated at the end. Raises TesseraError if it does not start.

    printed: its group is the URL in what the process prints; folder: where it runs; None: in the current one.
    """
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
        try:
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                found = printed.search(output.read_text(encoding="utf-8", errors="replace"))
                if found and _is_ready(found[1]):
                    yield found[1]
                    return
                time.sleep(0.1)
            lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise TesseraError(f"the server did not start: {(lines or ['no output'])[-1]}")
        finally:
            process.terminate()
            process.wait()


def _is_ready(address: str) -> bool:
    """Whether the models are loaded."""
    try:
        return requests.get(f"{address}/health", timeout=10).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        # It does not listen yet, or is busy loading.
        return False


def _report(
    config: Path, blocks: Mapping[str, Block], seconds: dict[str, list[float]], workload: Workload, machine: Machine
) -> BenchmarkReport:
    rows, results = [], []
    for name, block in blocks.items():
        ratio = None if name == "1" else Ratio.of(seconds[name], seconds["1"])
        figures = block.figures(seconds[name], blocks["1"], ratio)
        results.append(figures)
        rows.append([name, *block.cells(figures, ratio)])
    what = f"{workload.questions} questions about different images; {workload.rounds} interleaved blocks per number of clients"
    measured = {"machine": asdict(machine), "effort": asdict(workload), "results": results}
    return BenchmarkReport(f"Answers over HTTP, {config.stem}", {**machine.facts(), "a block": what}, COLUMNS, rows, measured)


def measure_against_transformers(config_path: Path, overrides: list[str], workload: Workload) -> BenchmarkReport:
    """Export the latest checkpoint, start both servers with it and ask both. overrides: `key=value` settings of the command line.

    Raises:
        UsageError: the model is exported in no format that transformers loads.
        TesseraError: a server does not start, or a request fails.
    """
    config = configuration.load(config_path, overrides)
    if config.model.family != "siglip_qwen":
        raise UsageError(f"model.family: --against transformers exports siglip_qwen in the LLaVA format, not {config.model.family}")
    python = peer_python(f"transformers[serving]=={transformers.__version__}")
    questions = synthetic_questions(workload.questions)
    with tempfile.TemporaryDirectory() as name:
        export = Path(name) / "export"
        family("siglip_qwen").export(latest_checkpoint(config.checkpoint_folder), export, "llava", torch.float32, None)
        systems = json.dumps([{"name": SYSTEM, "kind": "checkpoint", "path": str(export)}])
        settings = [f"eval.systems={systems}", f"serve.system={SYSTEM}", "rerank.clip=null", f"serve.max_queue={2 * workload.clients}"]
        # The process of transformers runs in the folder of the export and serves it as `.`.
        command = [str(python), "-c", START, "serve", ".", "--port", "0", "--device", default_device().type]
        with our_server(config_path, [*overrides, *settings]) as ours, started_server(command, LISTENING, export) as theirs:
            blocks = {}
            for clients in (1, workload.clients):
                for server, address, model in ((OURS, ours, SYSTEM), (THEIRS, theirs, ".")):
                    blocks[server, clients] = Block(clients, partial(_ask, f"{address}/v1/chat/completions", model), questions)
            seconds = run_interleaved(blocks, workload.rounds)
    return _transformers_report(config_path, blocks, seconds, workload)


def _ask(address: str, model: str, session: requests.Session, question: Question) -> str:
    """The answer of a server by OpenAI's API."""
    url = f"data:image/jpeg;base64,{base64.b64encode(question.image).decode('ascii')}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS, "temperature": 0}
    text: str = post(session, address, json=body)["choices"][0]["message"]["content"]
    return text.strip()


Key = tuple[str, int]
"""A server and its number of clients."""


def _transformers_report(
    config: Path, blocks: Mapping[Key, Block], seconds: Mapping[Key, list[float]], workload: Workload
) -> BenchmarkReport:
    rows, results = [], []
    for (server, clients), block in blocks.items():
        own, other = seconds[server, clients], THEIRS if server == OURS else OURS
        ratio = Ratio.of(own, seconds[other, clients]) if server == OURS else None
        figures = block.figures(own, blocks[other, clients], ratio)
        results.append({"server": server, **figures})
        of_rounds = " ".join(format_number(workload.questions / seconds_of_round) for seconds_of_round in own)
        questions_per_second, *cells = block.cells(figures, ratio)
        rows.append([str(clients), server, questions_per_second, of_rounds, *cells])
    machine = Machine.current(default_device())
    facts = {
        **machine.facts(),
        "a block": f"{workload.questions} questions about different images, greedy, at most {MAX_TOKENS} tokens; "
        f"{workload.rounds} rounds of all blocks, one after the other",
        "transformers": transformers.__version__,
    }
    measured = {"machine": asdict(machine), "effort": asdict(workload), "results": results}
    return BenchmarkReport(f"Answers over HTTP, {config.stem}, beside transformers serve", facts, TRANSFORMERS_COLUMNS, rows, measured)
