"""Speed of `train.py` against TRL's SFTTrainer: the same weights, samples, adapters, batch size and precision, one after the other.

In: a configuration with merged data. Out: samples a second of both, in runs that alternate; start and first steps are left out. Our own
model (`siglip_qwen`) is exported in the LLaVA format first, and both train adapters on the export.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

import config as configuration
from answering.answerer_factory import default_device
from atomic_io import write_json, write_text
from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.family_comparison import saved_parameters
from benchmarks.peers.peer_environment import peer_python
from benchmarks.timing import Ratio
from config import Config
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, Sample
from errors import TesseraError, UsageError
from model.checkpoint_manifest import latest_checkpoint
from model.family_config import LoraConfig
from training.checkpointing.resume import TRAINER_FOLDER, read_run_state
from training.config import LearningRates

TRL = "trl==1.16.0"
FAMILIES = ("siglip_qwen", "qwen_vl", "llava")
"""Families whose processors have a chat template, which SFTTrainer needs."""
FIRST_STEP, LOGGING_STEPS = 10, 10
"""Steps before the measured ones, and steps between two lines of the log."""
VALIDATION_SAMPLES = 8
COLUMNS = ("trainer", "samples/s", "of each round", "trained parameters", "loss of the last steps", "ours is faster by")
LANGUAGE_LINEARS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work. steps: optimizer steps of a run; rounds: runs of each side."""

    steps: int
    rounds: int


@dataclass(frozen=True)
class Measured:
    """A run. samples_per_second behind the first steps; loss: mean over the last logged steps, in nats per supervised token."""

    samples_per_second: float
    trained_parameters: int
    loss: float
    version: str = ""


def measure(config_path: Path, overrides: list[str], workload: Workload) -> BenchmarkReport:
    """Run both sides. overrides: `key=value` settings of the command line.

    Raises:
        UsageError: the configuration cannot be compared.
        TesseraError: a run fails, or the sides train different numbers of weights.
    """
    config = configuration.load(config_path, overrides)
    _check(config, workload)
    python = peer_python(TRL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = _write_samples(config.data_folder, folder, workload.steps * config.train.per_device_train_batch_size)
        raw = configuration.read(config_path, overrides)
        base = _base_model(raw, config, folder)
        ours: list[Measured] = []
        theirs: list[Measured] = []
        for _ in range(workload.rounds):
            ours.append(_run_ours(config, _our_settings(raw, config, workload.steps, base), folder))
            theirs.append(_run_trl(python, peer_settings(config, workload.steps, base, folder), folder))
        for run in ("base", "ours"):
            shutil.rmtree(_run_folder(config, run), ignore_errors=True)
            shutil.rmtree(Path("results") / _run_folder(config, run).name, ignore_errors=True)
    if ours[0].trained_parameters != theirs[0].trained_parameters:
        counts = f"{ours[0].trained_parameters:,} and {theirs[0].trained_parameters:,}"
        raise TesseraError(f"train.py and SFTTrainer do not train the same weights: they train {counts} parameters")
    return _report(config, samples, ours, theirs)


def _check(config: Config, workload: Workload) -> None:
    if config.model.family not in FAMILIES:
        raise UsageError(f"model.family: SFTTrainer needs a model with a chat template ({', '.join(FAMILIES)}), not {config.model.family}")
    if config.model.lora is None or config.model.lora.target_modules != "all-linear":
        raise UsageError("model.lora: both sides train adapters on all linear layers of the language model")
    if workload.steps < FIRST_STEP + LOGGING_STEPS:
        raise UsageError(f"--steps {workload.steps}: expected at least {FIRST_STEP + LOGGING_STEPS}")


def _write_samples(data: Path, folder: Path, count: int) -> int:
    """Write the same samples for both sides: training samples of one question about one image, each of them once.

    Ours become merged data in `folder`/data, TRL's the file `folder`/samples.jsonl. Returns their number.
    """
    store = SampleStore(data)
    rows = [row for row in store.indices("train") if _is_simple(store.sample(int(row)))]
    if len(rows) < count:
        raise UsageError(f"{data}: {len(rows):,} samples of one question about one image; {count:,} are needed (--steps, batch size)")
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:count])
    kept = np.concatenate([chosen, store.indices("validation")[:VALIDATION_SAMPLES]])
    (folder / "data").mkdir()
    shutil.copy(data / "images.parquet", folder / "data")
    pq.write_table(pq.read_table(data / "samples.parquet").take(kept), folder / "data" / "samples.parquet")
    lines = [
        {
            "images": [str(Path(store.image(sample.image_ids[0]).path).absolute())],
            "prompt": [{"role": "user", "content": sample.prompted_messages[0].content.replace(IMAGE_PLACEHOLDER, "").strip()}],
            "completion": [{"role": "assistant", "content": sample.target(0, 0)}],
        }
        for sample in store.samples(chosen)
    ]
    write_text(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return count


def _is_simple(sample: Sample) -> bool:
    return len(sample.messages) == len(sample.image_ids) == len(sample.targets) == 1


def _base_model(raw: Mapping[str, Any], config: Config, folder: Path) -> str:
    """The folder whose weights both sides start from: the model itself, or our own model in the LLaVA format."""
    if config.model.family != "siglip_qwen":
        return str(getattr(config.model, "path"))  # noqa: B009 (families differ)
    train = {**raw["train"], "stages": [{"name": "align", "train": ["connector"], "max_steps": 1}]}
    checkpoint = _run_training(config, {**raw, "train": train}, folder, "base")
    paths = ("--config", folder / "base.yaml", "--checkpoint", checkpoint, "--out", folder / "llava")
    _run(sys.executable, "tools/export.py", *paths, "--format", "llava")
    return str(folder / "llava")


def _run_folder(config: Config, name: str) -> Path:
    """Folder of the checkpoints of a run of ours; it is deleted at the end."""
    return Path("checkpoints") / f"{config.name}_against_trl_{name}"


def _our_settings(raw: Mapping[str, Any], config: Config, steps: int, base: str) -> dict[str, Any]:
    """The configuration of a run of ours: adapters alone, single questions, no quantisation, no validation before the end."""
    train = {
        **raw["train"],
        "stages": [{"name": "tune", "train": ["lora"], "max_steps": steps}],
        "max_questions_per_conversation": 1,
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": 1,
        "logging_steps": LOGGING_STEPS,
        "eval_steps": steps + 1,
        "eval_samples": VALIDATION_SAMPLES,
        "save_steps": steps + 1,
        "learning_rate": _learning_rate(config),
    }
    model = {**raw["model"], "quantization": "none"}
    if config.model.family == "siglip_qwen":
        train["init_from"] = base
    return {**raw, "train": train, "model": model}


def peer_settings(config: Config, steps: int, base: str, folder: Path) -> dict[str, Any]:
    """Settings of benchmarks/peers/trl_training.py."""
    lora = config.model.lora
    assert isinstance(lora, LoraConfig)
    return {
        "model": base,
        "data": str(folder / "samples.jsonl"),
        "first_step": FIRST_STEP,
        "training": {
            "output_dir": str(folder / "trl"),
            "max_steps": steps,
            "logging_steps": LOGGING_STEPS,
            "per_device_train_batch_size": config.train.per_device_train_batch_size,
            "learning_rate": _learning_rate(config),
            "dataloader_num_workers": config.train.dataloader_num_workers,
        },
        "lora": {
            **{name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout")},
            "target_modules": rf".*language_model\..*\.({LANGUAGE_LINEARS})",
        },
    }


def _learning_rate(config: Config) -> float:
    rate = config.train.learning_rate
    return rate.lora if isinstance(rate, LearningRates) else rate


def _run_ours(config: Config, raw: Mapping[str, Any], folder: Path) -> Measured:
    checkpoint = _run_training(config, raw, folder, "ours")
    rows = [row for row in read_run_state(checkpoint / TRAINER_FOLDER).history if "samples_per_second" in row]
    rates = {row["step"]: row["samples_per_second"] for row in rows if row["step"] > FIRST_STEP}
    # All steps by the time of all steps, in units of the batch size.
    seconds = sum((step - before) / rates[step] for before, step in pairwise((FIRST_STEP, *rates)))
    trained = saved_parameters([checkpoint / "adapter_model.safetensors"], "lora_")
    return Measured((max(rates) - FIRST_STEP) / seconds, trained, rows[-1]["loss"])


def _run_training(config: Config, raw: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Run train.py on the samples in `folder`; returns the last checkpoint."""
    path, run = folder / f"{name}.yaml", _run_folder(config, name)
    shutil.rmtree(run, ignore_errors=True)
    settings = {**raw, "name": run.name, "data": {"folder": str(folder / "data")}}
    write_text(path, yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    _run(sys.executable, "train.py", "--config", path)
    return latest_checkpoint(run)


def _run_trl(python: Path, settings: Mapping[str, Any], folder: Path) -> Measured:
    write_json(folder / "trl.json", settings)
    _run(python, "benchmarks/peers/trl_training.py", folder / "trl.json", folder / "trl_result.json")
    return Measured(**json.loads((folder / "trl_result.json").read_text(encoding="utf-8")))


def _run(python: str | Path, script: str, *arguments: str | Path) -> None:
    """Run a script of this project; its output is shown when it fails."""
    done = subprocess.run([python, ROOT / script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise TesseraError(f"{Path(script).name} {' '.join(map(str, arguments))}: ended with status {done.returncode}\n{last}")


def _report(config: Config, samples: int, ours: Sequence[Measured], theirs: Sequence[Measured]) -> BenchmarkReport:
    machine = Machine.current(default_device())
    faster = Ratio.of([1 / run.samples_per_second for run in ours], [1 / run.samples_per_second for run in theirs])
    rows, measured = [], []
    for name, runs in (("ours (train.py)", ours), (f"SFTTrainer ({theirs[0].version})", theirs)):
        rates, parameters = [run.samples_per_second for run in runs], runs[0].trained_parameters
        loss = statistics.median(run.loss for run in runs)
        numbers = [format_number(statistics.median(rates)), " ".join(map(format_number, rates)), f"{parameters:,}", format_number(loss, 3)]
        rows.append([name, *numbers, str(faster) if runs is theirs else ""])
        measured.append({"trainer": name, "samples_per_second": rates, "trained_parameters": parameters, "loss": loss})
    facts = {
        "what": f"{config.name} ({config.model.family}), {samples:,} samples of one question each, batches of "
        f"{config.train.per_device_train_batch_size}, adapters on all linear layers of the language model",
        **machine.facts(),
    }
    title = "Training: samples a second of train.py and of TRL's SFTTrainer"
    return BenchmarkReport(title, facts, COLUMNS, rows, {"machine": asdict(machine), "runs": measured, "faster": asdict(faster)})
