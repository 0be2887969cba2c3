"""All measurements that need a GPU, one after the other into one folder, and what they say of the targets.

Each runs in a process of its own, so that none keeps memory from the next and a failure stops no other. In: how the benchmark is
called. Out: its tables and logs, and `targets.md` and `.json` with a line for each target: met, missed, or why it was not measured.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.benchmark_report import EMPTY_CELL, BenchmarkReport, Machine, format_number
from errors import TesseraError, UsageError

COLUMNS = ("target", "bar", "found", "met")


class NotMeasuredError(Exception):
    """A table does not hold the number of a target; says why."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A call of the benchmark; its table is `table`.json."""

    table: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A number of a table that is to be at least (or at most) so large. found: takes it out of the table, or raises NotMeasuredError."""

    what: str
    table: str
    found: Callable[[dict[str, Any]], float]
    threshold: float
    at_least: bool
    unit: str = ""

    def row(self, table: dict[str, Any] | str) -> tuple[list[str], dict[str, Any]]:
        """The line of the target, for people and for programs. table: what was measured, or why nothing was."""
        comparison = "at least" if self.at_least else "at most"
        threshold = f"{comparison} {self.threshold:g}{self.unit}"
        try:
            if isinstance(table, str):
                raise NotMeasuredError(table)
            value = self.found(table)
        except NotMeasuredError as reason:
            why = {"what": self.what, "bar": threshold, "found": None, "met": None, "why": str(reason)}
            return [self.what, threshold, EMPTY_CELL, f"not measured: {reason}"], why
        met = value >= self.threshold if self.at_least else value <= self.threshold
        plain = {"what": self.what, "bar": threshold, "found": value, "met": met}
        return [self.what, threshold, f"{format_number(value, 4 if self.threshold < 0.1 else 2)}{self.unit}", "yes" if met else "NO"], plain


def speedup_over(path: str) -> Callable[[dict[str, Any]], float]:
    """How many times as fast ours is as a path of the table."""

    def found(table: dict[str, Any]) -> float:
        ratio: dict[str, float] = _number(_row(table, path), "ours_is_faster_by")
        return ratio["median"]

    return found


def our_metric(key: str) -> Callable[[dict[str, Any]], float]:
    """A number of our own row."""
    return lambda table: _number(_row(table, "ours"), key)


def parity_metric(key: str) -> Callable[[dict[str, Any]], float]:
    """How far ours and stock are apart before they are timed."""

    def found(table: dict[str, Any]) -> float:
        if table["agreement"] is None:
            raise NotMeasuredError("stock was not run")
        return float(table["agreement"][key])

    return found


def total_gib(table: dict[str, Any]) -> float:
    """GiB that a step takes on the device."""
    return float(_number(table["bytes"], "in all")) / 2**30


def final_loss_difference(table: dict[str, Any]) -> float:
    """Of the validation losses behind the last step."""
    return float(table["rows"][-1]["differs_by"])


def _row(table: dict[str, Any], path: str) -> dict[str, Any]:
    """The row of a path that was timed."""
    rows: list[dict[str, Any]] = [row for row in table["results"] if row["path"] == path]
    timed = [row for row in rows if row["seconds"]]
    if not timed:
        raise NotMeasuredError(f"{path} ran out of memory" if rows else f"{path} was not run")
    return timed[0]


def _number(values: dict[str, Any], key: str) -> Any:
    value = values.get(key)
    if value is None:
        raise NotMeasuredError(f"the device does not tell {key}")
    return value


QLORA = (
    "model.quantization=nf4",
    "train.packing_length=1024",
    "train.gradient_accumulation_steps=16",
    "train.optim=paged_adamw8bit",
    "train.gradient_checkpointing=true",
)
NO_DROPOUT = "model.lora.lora_dropout=0"
"""As in the scripts whose figures the targets come from; with it, both sides are slower and keep more."""
MEASUREMENTS = (
    Measurement("train_1.7b", ("train", "--size", "1.7b", "--against", "stock", NO_DROPOUT, "train.packing_length=16384")),
    Measurement("train_4b", ("train", "--size", "4b", "--against", "stock", NO_DROPOUT)),
    Measurement("train_8b", ("train", "--size", "8b", "--against", "stock", NO_DROPOUT)),
    Measurement("generate_1.7b", ("generate", "--size", "1.7b", "--against", "stock", "decoding.batch_size=48")),
    Measurement("generate_4b", ("generate", "--size", "4b", "--against", "stock", "decoding.batch_size=48")),
    Measurement("generate_8b", ("generate", "--size", "8b", "--against", "stock", "decoding.batch_size=48")),
    Measurement("memory_4b_measured", ("memory", "--size", "4b", "--run", *QLORA)),
    Measurement("memory_8b_measured", ("memory", "--size", "8b", "--run", *QLORA)),
    Measurement("equality_tiny", ("equality", "--steps", "200")),
)
"""What a GPU is asked for; the settings beside the size are those of its recipe (see tools/benchmark.py)."""

TARGETS = (
    Target("LoRA step, Qwen3-1.7B, times stock with checkpointing", "train_1.7b", speedup_over("stock, checkpointing"), 7, True),
    Target("LoRA step, Qwen3-1.7B, times stock without checkpointing", "train_1.7b", speedup_over("stock"), 3, True),
    Target("LoRA step, Qwen3-1.7B, peak memory", "train_1.7b", our_metric("peak_gib"), 45, False, " GiB"),
    Target("LoRA step, Qwen3-4B, times stock with checkpointing", "train_4b", speedup_over("stock, checkpointing"), 4, True),
    Target("LoRA step, Qwen3-4B, useful share of the matrix product", "train_4b", our_metric("share_of_product"), 0.5, True),
    *(
        target
        for size in ("1.7b", "4b", "8b")
        for target in (
            Target(f"loss, ours off stock, Qwen3-{size.upper()}", f"train_{size}", parity_metric("loss_off"), 0.02, False),
            Target(
                f"trained gradients, ours off stock, Qwen3-{size.upper()}", f"train_{size}", parity_metric("gradients_off"), 0.02, False
            ),
        )
    ),
    Target("QLoRA, Qwen3-4B, rows of 1,024, 16 accumulated", "memory_4b_measured", total_gib, 10, False, " GiB"),
    Target("QLoRA, Qwen3-8B, rows of 1,024, 16 accumulated", "memory_8b_measured", total_gib, 14, False, " GiB"),
    Target("candidates, Qwen3-1.7B, times one picture at a time", "generate_1.7b", speedup_over("stock, one at a time"), 25, True),
    Target("candidates, Qwen3-1.7B, times batched `generate`", "generate_1.7b", speedup_over("stock, batched"), 4, True),
    Target("200 steps on the demo, fast and plain, validation losses", "equality_tiny", final_loss_difference, 0.01, False),
)


def check_device(subcommand: str) -> torch.device:
    """The CUDA device. Raises UsageError, one sentence, where there is none."""
    if not torch.cuda.is_available():
        raise UsageError(
            f"{subcommand}: there is no CUDA device that torch {torch.__version__} can use, and this measures one; "
            "`train` and `generate` with --size tiny measure a CPU"
        )
    return torch.device("cuda")


def prepare_data(commands: Sequence[Sequence[str]]) -> None:
    """Run what makes the data. Raises TesseraError naming what fails."""
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            raise TesseraError(f"{' '.join(command)} failed, so there is nothing to train on")


def run_all(command: Sequence[str], out: Path, measurements: Sequence[Measurement] = MEASUREMENTS) -> dict[str, dict[str, Any] | str]:
    """Call `command` for each measurement; by table, what it holds, or why there is none. Logs stand beside the tables."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any] | str] = {}
    for i, measurement in enumerate(measurements, 1):
        full_command = [*command, *measurement.arguments[:1], "--out", str(out), *measurement.arguments[1:]]
        print(f"\n{i}/{len(measurements)}  {' '.join(measurement.arguments)}", flush=True)
        table, log = out / f"{measurement.table}.json", out / f"{measurement.table}.log"
        table.unlink(missing_ok=True)
        status = _run_logged(full_command, log)
        if table.exists():
            # One that fails behind its table, as `equality` does, has still measured.
            found[measurement.table] = json.loads(table.read_text(encoding="utf-8"))
        else:
            found[measurement.table] = f"status {status}, see {log.name}"
    return found


def _run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command; what it says goes to the terminal and into a file."""
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            file.write(line)
    return process.returncode


def check_targets(found: dict[str, dict[str, Any] | str], machine: Machine, targets: Sequence[Target] = TARGETS) -> BenchmarkReport:
    """A line for each target."""
    lines = [target.row(found.get(target.table, "it was not run")) for target in targets]
    return BenchmarkReport("Targets", machine.facts(), COLUMNS, [row for row, _ in lines], {"targets": [plain for _, plain in lines]})


def check(report: BenchmarkReport) -> None:
    """Raise TesseraError where a target was missed or not measured."""
    not_met = [target["what"] for target in report.measured["targets"] if not target["met"]]
    if not_met:
        raise TesseraError(f"{len(not_met)} of {len(report.rows)} targets missed or not measured: {'; '.join(not_met)}")
