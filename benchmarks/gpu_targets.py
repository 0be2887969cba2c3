"""All benchmarks that need a GPU, run one after the other, and a check of their results against the targets.

Each benchmark runs in a separate process: no memory is left allocated for the next one, and a failure does not stop the others. The output
folder has their tables and logs, and `targets.md` and `targets.json` with a row per target: met, missed, or why it was not measured.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.benchmark_report import EMPTY_CELL, BenchmarkReport, Machine, format_number
from errors import TesseraError, UsageError

COLUMNS = ("target", "threshold", "measured", "met")


class NotMeasuredError(Exception):
    """The table has no value for a target; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Arguments of a benchmark run, which writes `table`.json."""

    table: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A threshold for a number of a table.

    Args:
        what: description.
        table: name of the table.
        value_of: reads the number from the table, or raises NotMeasuredError.
        threshold: the number must be at least (or at most) this.
        at_least: whether the threshold is a minimum.
        unit: text after the number.
    """

    what: str
    table: str
    value_of: Callable[[dict[str, Any]], float]
    threshold: float
    at_least: bool
    unit: str = ""

    def row(self, table: dict[str, Any] | str) -> tuple[list[str], dict[str, Any]]:
        """Row of the target as text and as JSON. `table` is the measured table, or the reason why there is none."""
        threshold = f"{'at least' if self.at_least else 'at most'} {self.threshold:g}{self.unit}"
        row = {"what": self.what, "bar": threshold}
        try:
            if isinstance(table, str):
                raise NotMeasuredError(table)
            value = self.value_of(table)
        except NotMeasuredError as reason:
            cells = [EMPTY_CELL, f"not measured: {reason}"]
            return [*row.values(), *cells], {**row, "found": None, "met": None, "why": str(reason)}
        met = value >= self.threshold if self.at_least else value <= self.threshold
        cells = [f"{format_number(value, 4 if self.threshold < 0.1 else 2)}{self.unit}", "yes" if met else "NO"]
        return [*row.values(), *cells], {**row, "found": value, "met": met}


def speedup_over(path: str) -> Callable[[dict[str, Any]], float]:
    """Reads the speed of ours divided by that of another path."""
    return lambda table: float(_number(_row(table, path), "ours_is_faster_by")["median"])


def our_metric(key: str) -> Callable[[dict[str, Any]], float]:
    """Reads a number of our own row."""
    return lambda table: _number(_row(table, "ours"), key)


def parity_metric(key: str) -> Callable[[dict[str, Any]], float]:
    """Reads the difference of ours and stock in loss or gradients, taken before they are timed."""

    def read(table: dict[str, Any]) -> float:
        if table["agreement"] is None:
            raise NotMeasuredError("stock was not run")
        return float(table["agreement"][key])

    return read


def total_gib(table: dict[str, Any]) -> float:
    """Reads the device memory of a training step, in GiB."""
    return float(_number(table["bytes"], "in all")) / 2**30


def final_loss_difference(table: dict[str, Any]) -> float:
    """Reads the relative difference of the validation losses after the last step."""
    return float(table["rows"][-1]["differs_by"])


def _row(table: dict[str, Any], path: str) -> dict[str, Any]:
    """Row of a path that was timed. Raises NotMeasuredError if there is none."""
    rows: list[dict[str, Any]] = [row for row in table["results"] if row["path"] == path]
    timed = [row for row in rows if row["seconds"]]
    if not timed:
        raise NotMeasuredError(f"{path} ran out of memory" if rows else f"{path} was not run")
    return timed[0]


def _number(values: dict[str, Any], key: str) -> Any:
    value = values.get(key)
    if value is None:
        raise NotMeasuredError(f"the device does not report {key}")
    return value


QLORA = (
    "model.quantization=nf4",
    "train.packing_length=1024",
    "train.gradient_accumulation_steps=16",
    "train.optim=paged_adamw8bit",
    "train.gradient_checkpointing=true",
)
NO_DROPOUT = "model.lora.lora_dropout=0"
"""As in the scripts that the targets come from. Dropout makes both sides slower and needs more memory."""
MEASUREMENTS = (
    Measurement("train_1.7b", ("train", "--size", "1.7b", "--against", "stock", NO_DROPOUT, "train.packing_length=16384")),
    Measurement("train_4b", ("train", "--size", "4b", "--against", "stock", NO_DROPOUT)),
    Measurement("train_8b", ("train", "--size", "8b", "--against", "stock", NO_DROPOUT)),
    *(
        Measurement(f"generate_{size}", ("generate", "--size", size, "--against", "stock", "decoding.batch_size=48"))
        for size in ("1.7b", "4b", "8b")
    ),
    *(Measurement(f"memory_{size}_measured", ("memory", "--size", size, "--run", *QLORA)) for size in ("4b", "8b")),
    Measurement("equality_tiny", ("equality", "--steps", "200")),
)
"""Benchmarks to run. Settings that are not named here are those of the recipe of the size (see tools/benchmark.py)."""

TARGETS = (
    Target("LoRA step, Qwen3-1.7B, times stock with checkpointing", "train_1.7b", speedup_over("stock, checkpointing"), 7, True),
    Target("LoRA step, Qwen3-1.7B, times stock without checkpointing", "train_1.7b", speedup_over("stock"), 3, True),
    Target("LoRA step, Qwen3-1.7B, peak memory", "train_1.7b", our_metric("peak_gib"), 45, False, " GiB"),
    Target("LoRA step, Qwen3-4B, times stock with checkpointing", "train_4b", speedup_over("stock, checkpointing"), 4, True),
    Target("LoRA step, Qwen3-4B, useful share of the matrix product", "train_4b", our_metric("share_of_product"), 0.5, True),
    *(
        Target(f"{what}, ours against stock, Qwen3-{size.upper()}", f"train_{size}", parity_metric(key), 0.02, False)
        for size in ("1.7b", "4b", "8b")
        for what, key in (("loss", "loss_off"), ("trained gradients", "gradients_off"))
    ),
    Target("QLoRA, Qwen3-4B, rows of 1,024, 16 accumulated", "memory_4b_measured", total_gib, 10, False, " GiB"),
    Target("QLoRA, Qwen3-8B, rows of 1,024, 16 accumulated", "memory_8b_measured", total_gib, 14, False, " GiB"),
    Target("candidates, Qwen3-1.7B, times one image at a time", "generate_1.7b", speedup_over("stock, one at a time"), 25, True),
    Target("candidates, Qwen3-1.7B, times batched `generate`", "generate_1.7b", speedup_over("stock, batched"), 4, True),
    Target("200 steps on the demo, ours against stock, validation losses", "equality_tiny", final_loss_difference, 0.01, False),
)


def check_device(subcommand: str) -> torch.device:
    """The CUDA device. Raises UsageError if there is none."""
    if not torch.cuda.is_available():
        raise UsageError(
            f"{subcommand}: there is no CUDA device that torch {torch.__version__} can use; "
            "`train` and `generate` with --size tiny run on a CPU"
        )
    return torch.device("cuda")


def prepare_data(commands: Sequence[Sequence[str]]) -> None:
    """Run the commands that create the data. Raises TesseraError for the first one that fails."""
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            raise TesseraError(f"{' '.join(command)} failed, so there is no data to train on")


def run_all(command: Sequence[str], out: Path, measurements: Sequence[Measurement] = MEASUREMENTS) -> dict[str, dict[str, Any] | str]:
    """Run all benchmarks by the benchmark command; tables and logs are written to `out`.

    Returns by table name the content of the table, or the reason why there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, dict[str, Any] | str] = {}
    for i, measurement in enumerate(measurements, 1):
        full_command = [*command, *measurement.arguments[:1], "--out", str(out), *measurement.arguments[1:]]
        print(f"\n{i}/{len(measurements)}  {' '.join(measurement.arguments)}", flush=True)
        table, log = out / f"{measurement.table}.json", out / f"{measurement.table}.log"
        table.unlink(missing_ok=True)
        status = _run_logged(full_command, log)
        # A run that fails after its table was written (as `equality` may) was still measured.
        measured = json.loads(table.read_text(encoding="utf-8")) if table.exists() else f"status {status}, see {log.name}"
        tables[measurement.table] = measured
    return tables


def _run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command and copy its output to the terminal and to a file; returns the exit status."""
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    return process.returncode


def check_targets(tables: dict[str, dict[str, Any] | str], machine: Machine, targets: Sequence[Target] = TARGETS) -> BenchmarkReport:
    """Report with a row per target."""
    lines = [target.row(tables.get(target.table, "it was not run")) for target in targets]
    return BenchmarkReport("Targets", machine.facts(), COLUMNS, [row for row, _ in lines], {"targets": [measured for _, measured in lines]})


def check(report: BenchmarkReport) -> None:
    """Raise TesseraError if a target was missed or not measured."""
    not_met = [target["what"] for target in report.measured["targets"] if not target["met"]]
    if not_met:
        raise TesseraError(f"{len(not_met)} of {len(report.rows)} targets missed or not measured: {'; '.join(not_met)}")
