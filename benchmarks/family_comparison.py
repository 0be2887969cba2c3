"""Train several configurations on the same data, with several seeds, and compare what they learnt in one report.

In: configuration files, such as one for each model family. Out: a run of each with each seed, an evaluation of all of them on the same
questions (`eval_rerank`'s report, in which the seeds of a configuration are a group), and a table of quality and cost: after equally many
steps, and after the time that the fastest one takes for them (a checkpoint of the same run).
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import safe_open

import config as configuration
from atomic_io import write_json, write_text
from benchmarks.benchmark_report import format_number
from errors import TesseraError, UsageError
from evaluation.schema.summary_file import SystemFigures, read_summary
from model.checkpoint_manifest import latest_checkpoint
from training.checkpointing.resume import TRAINER_FOLDER, checkpoint_folders, checkpoint_step, config_settings, read_run_state
from training.config import Experiment

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
RUNS_FILE, TABLE_FILE = "runs.json", "families.md"
COLUMNS = ("configuration", "family", "VQA accuracy", "in equal time", "trained", "samples/s", "peak GiB", "visual tokens", "seconds")
CHECKPOINTS_PER_RUN = 10
"""Checkpoints of a run, among which that of equal time is chosen."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        name: of the comparison; its results stand in results/<name>.
        configs: configurations and their files; those of the evaluation are the first one's.
        seeds: of the runs of each configuration.
        steps: optimizer steps of the last stage.
        questions: number of questions of the evaluation.
    """

    name: str
    configs: Sequence[tuple[Path, Experiment]]
    seeds: Sequence[int]
    steps: int
    questions: int

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path("results") / self.name

    def run_name(self, config: Path, seed: int) -> str:
        """Name of the run of a configuration with a seed."""
        return f"{self.name}_{config.stem}_seed{seed}"

    def of_seeds(self, config: Path, values: Mapping[str, T]) -> list[T]:
        """The values of the runs of a configuration, by their names, one for each seed."""
        return [values[self.run_name(config, seed)] for seed in self.seeds]


def compare_families(comparison: Comparison) -> str:
    """Train what has not been trained yet, evaluate, and write the table; returns it.

    Raises:
        UsageError: the configurations cannot be compared.
        TesseraError: a run or the evaluation fails; its output says why.
    """
    _check(comparison)
    comparison.folder.mkdir(parents=True, exist_ok=True)
    runs = _finished_runs(comparison)
    for path, config in comparison.configs:
        for seed in comparison.seeds:
            name = comparison.run_name(path, seed)
            if name not in runs:
                runs[name] = _train(comparison, path, config, seed)
                write_json(comparison.folder / RUNS_FILE, runs)
    equal_time = equal_time_checkpoints(runs)
    last = {name: Path(run["checkpoint"]) for name, run in runs.items()}
    systems = _evaluate(comparison, comparison.name, last, with_others=True)
    early = _evaluate(comparison, f"{comparison.name}_equal_time", equal_time, with_others=False)
    table = _table(comparison, runs, equal_time, systems, early)
    write_text(comparison.folder / TABLE_FILE, table)
    return table


def _check(comparison: Comparison) -> None:
    if len({path.stem for path, _ in comparison.configs}) < len(comparison.configs):
        raise UsageError("the configurations need different file names, which are their names in the report")
    (first, expected), *others = ((path, config.data_folder) for path, config in comparison.configs)
    for path, folder in others:
        if folder != expected:
            raise UsageError(f"{path}: its data are in {folder}, those of {first} in {expected}; the same are expected (data.folder)")
    if not (expected / "samples.parquet").is_file():
        raise UsageError(f"{expected / 'samples.parquet'} does not exist; run python tools/preprocess.py --config {first} first")


def _finished_runs(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Runs of an earlier call with the same settings, by name; a comparison that was stopped goes on after them."""
    path = comparison.folder / RUNS_FILE
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = {
        comparison.run_name(path, seed): config_settings(config) for path, config in comparison.configs for seed in comparison.seeds
    }
    return {
        name: run
        for name, run in known.items()
        if run["steps"] == comparison.steps and run["settings"] == settings.get(name) and Path(run["checkpoint"]).is_dir()
    }


def _train(comparison: Comparison, path: Path, config: Experiment, seed: int) -> dict[str, Any]:
    """Run train.py and return what the run cost."""
    name, last = comparison.run_name(path, seed), len(config.train.stages) - 1
    steps = f"train.stages.{last}.max_steps={comparison.steps}"
    save_steps = max(1, comparison.steps // CHECKPOINTS_PER_RUN)
    saving = [f"train.save_steps={save_steps}", "train.save_total_limit=1000", f"train.logging_steps={save_steps}"]
    overrides = [f"name={name}", f"data.folder={config.data_folder}", f"train.seed={seed}", steps, *saving]
    started = time.monotonic()
    _run("train.py", "--config", str(path), "--resume", "auto", *overrides)
    seconds = time.monotonic() - started
    checkpoint = latest_checkpoint(Path("checkpoints") / name)
    history = read_run_state(checkpoint / TRAINER_FOLDER).history
    rows = [row for row in history if row["stage"] == config.train.stages[-1].name]
    rates = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    return {
        "checkpoint": str(checkpoint),
        "steps": comparison.steps,
        "settings": config_settings(config),
        "seconds": seconds,
        "training_seconds": _training_seconds(history, config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps),
        # The first row has the start-up of the loaders in it.
        "samples_per_second": _mean(rates[1:] or rates),
        "peak_memory_gib": max(row["peak_memory_gib"] for row in rows if "peak_memory_gib" in row),
        "trained_parameters": saved_parameters(checkpoint.rglob("*.safetensors")),
    }


def _training_seconds(history: Sequence[Mapping[str, Any]], batch_size: int) -> dict[int, float]:
    """Seconds of training up to each logged step, from the samples a second between them; start, validation and saving left out."""
    seconds, before, total = {0: 0.0}, 0, 0.0
    for row in history:
        if row.get("samples_per_second"):
            total += (row["step"] - before) * batch_size / row["samples_per_second"]
            before = row["step"]
            seconds[before] = total
    return seconds


def equal_time_checkpoints(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """For each run its last checkpoint within the time that the fastest run takes for all its steps."""
    seconds = {name: {int(step): value for step, value in run["training_seconds"].items()} for name, run in runs.items()}
    limit = min(max(values.values()) for values in seconds.values())
    chosen = {}
    for name, run in runs.items():
        saved = checkpoint_folders(Path(run["checkpoint"]).parent)
        within = [folder for folder in saved if seconds[name].get(checkpoint_step(folder), float("inf")) <= limit]
        chosen[name] = within[-1] if within else saved[0]
    return chosen


def saved_parameters(files: Iterable[Path], name_part: str = "") -> int:
    """Number of weights in safetensors files; of those alone whose names contain `name_part`."""
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys() if name_part in key)  # noqa: SIM118 (no mapping)
    return total


def _run(script: str, *arguments: str) -> None:
    """Run a command of this project, with its output on this terminal."""
    completed = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False)
    if completed.returncode:
        raise TesseraError(f"{script} {' '.join(arguments)}: ended with status {completed.returncode}")


def _evaluate(comparison: Comparison, name: str, checkpoints: Mapping[str, Path], *, with_others: bool) -> dict[str, SystemFigures]:
    """Evaluate a checkpoint of each run, the seeds of a configuration as a group; returns the figures of each run, by its name.

    Args:
        comparison: what is compared.
        name: of the evaluation; its report stands in results/<name>.
        checkpoints: by the names of the runs.
        with_others: also ask every other system that one of the configurations names, and the first one with shuffled images.
    """
    first, config = comparison.configs[0]
    raw: dict[str, Any] = configuration.read(first)
    systems: list[dict[str, Any]] = []
    groups = {path.stem: [f"{path.stem}-seed{seed}" for seed in comparison.seeds] for path, _ in comparison.configs}
    for path, _ in comparison.configs:
        for system, checkpoint in zip(groups[path.stem], comparison.of_seeds(path, checkpoints), strict=True):
            systems.append({"name": system, "kind": "checkpoint", "path": str(checkpoint)})
        others = (configuration.read(path).get("eval") or {}).get("systems") or []
        known = {system["name"] for system in systems}
        systems += [system for system in others if with_others and system["kind"] != "checkpoint" and system["name"] not in known]
    controls = ["shuffled_images"] if with_others else []
    evaluation = {**(raw.get("eval") or {}), "systems": systems, "limit": comparison.questions, "thresholds": {}, "controls": controls}
    if len(comparison.seeds) > 1:
        evaluation["groups"] = groups
    data = {**(raw.get("data") or {}), "folder": str(config.data_folder)}
    # First answers are compared; rerankers would double the number of verdicts.
    whole = {**{key: value for key, value in raw.items() if key != "rerank"}, "name": name, "data": data, "eval": evaluation}
    folder = Path("results") / name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.yaml", yaml.safe_dump(whole, allow_unicode=True, sort_keys=False))
    _run("tools/eval_rerank.py", "--config", str(folder / "evaluation.yaml"))
    figures = read_summary(folder / "summary.json").systems
    return {
        comparison.run_name(path, seed): figures[f"{path.stem}-seed{seed}"] for path, _ in comparison.configs for seed in comparison.seeds
    }


def _table(
    comparison: Comparison,
    runs: Mapping[str, dict[str, Any]],
    equal_time: Mapping[str, Path],
    last: Mapping[str, SystemFigures],
    early: Mapping[str, SystemFigures],
) -> str:
    """Markdown: quality and cost of each configuration, a mean over its seeds, and where the report is."""
    seeds = ", ".join(map(str, comparison.seeds))
    lines = [f"# {comparison.name}", "", f"{comparison.steps:,} steps of the last stage, seeds {seeds}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for path, config in comparison.configs:
        members, systems = comparison.of_seeds(path, runs), comparison.of_seeds(path, last)
        steps = ", ".join(dict.fromkeys(str(checkpoint_step(folder)) for folder in comparison.of_seeds(path, equal_time)))
        tokens = [system.visual_tokens for system in systems if system.visual_tokens is not None]
        cells = [
            path.stem,
            config.model.family,
            _accuracies(systems),
            f"{_accuracies(comparison.of_seeds(path, early))} (step {steps})",
            f"{members[0]['trained_parameters'] / 1e6:.2f} M",
            format_number(_mean([run["samples_per_second"] for run in members]), 1),
            format_number(max(run["peak_memory_gib"] for run in members), 2),
            format_number(_mean(tokens) if tokens else None, 1),
            format_number(_mean([run["seconds"] for run in members]), 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Verdicts over all pairs, intervals and other systems: {comparison.folder / 'report.html'}", ""])


def _accuracies(systems: Sequence[SystemFigures]) -> str:
    """VQA accuracy of the first candidates of each system, in per cent."""
    return " / ".join(f"{100 * system.choices['first'].vqa_accuracy:.1f}" for system in systems)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
