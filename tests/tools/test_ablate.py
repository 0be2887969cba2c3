"""tools/ablate.py: the shipped configuration, errors, a report without training; slow: a run that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from benchmarks.ablation.config import all_variants, check_variants, load
from tests.benchmarks.ablation.conftest import write_ablation as write_ablation
from tests.pipeline import ROOT
from tools import ablate


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.run(ablate.main, ablate.parser, list(arguments))
    return int(str(ended.value.code))


def test_every_variant_of_the_shipped_ablation_can_be_trained() -> None:
    path = Path("configs/ablation.yaml")
    variants = all_variants(load(path))
    check_variants(path, variants)
    assert len(variants) > 5 and all(variant.description for variant in variants.values())
    assert len({variant.overrides for variant in variants.values()}) == len(variants)


def test_a_report_needs_no_data_and_trains_nothing(write_ablation: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--config", str(write_ablation()), "--report", "--out", "out", "--work", "work") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("\n# Ablation: ablation.yaml") and "report: out/report.md" in printed
    assert Path("out/report.md").read_text(encoding="utf-8") in printed
    assert not Path("work").exists()


def test_errors_are_one_sentence(write_ablation: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_ablation())
    assert command("--config", "nowhere.yaml") == 2
    assert capsys.readouterr().err == "error: --config nowhere.yaml: there is no such file\n"
    assert command("--config", path, "--variants", "pool9") == 2
    assert "there is no such variant" in capsys.readouterr().err
    path = str(write_ablation(overrides={"train.seeed": 1}))
    assert command("--config", path) == 2
    assert capsys.readouterr().err == "error: ablation.yaml: overrides: small.yaml: train.seeed: unknown key; the nearest is train.seed\n"


@pytest.mark.slow
def test_a_killed_command_goes_on_and_a_variant_that_diverges_is_a_row(write_ablation: Callable[..., Path]) -> None:
    variants = {"diverges": {"description": "far too fast", "overrides": {"train.learning_rate": 1e30, "train.stages.0.max_steps": 20}}}
    program = [sys.executable, str(ROOT / "tools/ablate.py"), "--config", str(write_ablation(variants=variants, seeds=[0]))]
    program += ["--out", "out", "--work", "work"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Path("out/runs/base-seed0.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not Path("out/runs/diverges-seed0.json").exists()
    written = Path("out/runs/base-seed0.json").stat().st_mtime_ns
    second = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    assert "1 runs to do, 1 done before" in second.stdout and Path("out/runs/base-seed0.json").stat().st_mtime_ns == written
    assert "- diverges, seed 0: step" in second.stdout and "lower train.learning_rate" in second.stdout
