"""Answers over HTTP of ours and of `transformers serve`: the same export, the same requests to OpenAI's API, greedy decoding.

In: a configuration with a trained checkpoint. Out: questions a second of both for one client and for many, in blocks that alternate.
"""

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import requests
import torch
import transformers

import config as configuration
from answering.answerer_factory import default_device
from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.peers.peer_environment import peer_python
from benchmarks.serving.serving_throughput import (
    Block,
    Question,
    Workload,
    our_server,
    post,
    run_interleaved,
    started_server,
    synthetic_questions,
)
from benchmarks.timing import Ratio
from errors import UsageError
from model.checkpoint_manifest import latest_checkpoint
from model.family import family

MAX_TOKENS = 16
"""Largest number of tokens of an answer."""
SYSTEM = "export"
"""Name of the export at our server."""
START = "from transformers.cli.transformers import main; main()"
LISTENING = re.compile(r"running on (http://\S+)")
COLUMNS = ("clients", "server", "questions/s", "of each round", "median ms", "slowest ms", "same answers", "ours is faster by")


def measure(config_path: Path, overrides: list[str], workload: Workload) -> BenchmarkReport:
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
        checkpoint = latest_checkpoint(config.checkpoint_folder)
        family("siglip_qwen").export(checkpoint, export, "llava", torch.float32, None)
        with _ours(config_path, overrides, export, workload) as ours, _theirs(python, export) as theirs:
            blocks = {}
            for clients in (1, workload.clients):
                for server, (address, model) in (("ours", (ours, SYSTEM)), ("transformers serve", (theirs, "."))):
                    blocks[f"{server}, {clients}"] = Block(clients, _Client(address, model), questions)
            seconds = run_interleaved(blocks, workload.rounds)
    return _report(config_path, blocks, seconds, workload)


class _Client:
    """Asks a server by OpenAI's API."""

    def __init__(self, address: str, model: str):
        self.address, self.model = f"{address}/v1/chat/completions", model

    def __call__(self, session: requests.Session, question: Question) -> str:
        url = f"data:image/jpeg;base64,{base64.b64encode(question.image).decode('ascii')}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question.text}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS, "temperature": 0}
        text: str = post(session, self.address, json=body)["choices"][0]["message"]["content"]
        return text.strip()


@contextmanager
def _ours(config: Path, overrides: Sequence[str], export: Path, workload: Workload) -> Iterator[str]:
    systems = json.dumps([{"name": SYSTEM, "kind": "checkpoint", "path": str(export)}])
    settings = [f"eval.systems={systems}", f"serve.system={SYSTEM}", "rerank.clip=null", f"serve.max_queue={2 * workload.clients}"]
    with our_server(config, [*overrides, *settings]) as address:
        yield address


@contextmanager
def _theirs(python: Path, export: Path) -> Iterator[str]:
    """The process runs in the folder of the export and serves it as `.`."""
    device = "cuda" if default_device().type == "cuda" else "cpu"
    command = [str(python), "-c", START, "serve", ".", "--port", "0", "--device", device]
    with started_server(command, LISTENING, "/health", export) as address:
        yield address


def _report(config: Path, blocks: dict[str, Block], seconds: dict[str, list[float]], workload: Workload) -> BenchmarkReport:
    rows, results = [], []
    for name, block in blocks.items():
        server = name.partition(",")[0]
        other = blocks[f"{'transformers serve' if server == 'ours' else 'ours'}, {block.clients}"]
        rates = [workload.questions / own for own in seconds[name]]
        ratio = Ratio.of(seconds[name], seconds[f"transformers serve, {block.clients}"]) if server == "ours" else None
        result = {"server": server, **block.figures(seconds[name], other, ratio)}
        results.append(result)
        of_rounds = " ".join(format_number(rate) for rate in rates)
        times = [format_number(result[key]) for key in ("median_ms", "slowest_ms")]
        rows.append(
            [
                str(block.clients),
                server,
                format_number(result["questions_per_second"]),
                of_rounds,
                *times,
                f"{result['same_answers']} of {workload.questions}",
                format_number(None) if ratio is None else str(ratio),
            ]
        )
    machine = Machine.current(default_device())
    facts = {
        "a block": f"{workload.questions} questions about different images, greedy, at most {MAX_TOKENS} tokens; "
        f"{workload.rounds} rounds of all blocks, one after the other",
        "transformers": transformers.__version__,
    }
    measured = {"machine": asdict(machine), "effort": asdict(workload), "results": results}
    return BenchmarkReport(
        f"Answers over HTTP, {config.stem}, beside transformers serve", {**machine.facts(), **facts}, COLUMNS, rows, measured
    )
