"""Several configurations are trained on the same data, compared in one report, and what is done is not done again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli
from benchmarks.family_comparison import equal_time_checkpoints
from tests.training.conftest import workspace as workspace
from tools import benchmark

ROOT = Path(__file__).parent.parent.parent
Workspace = Callable[..., Path]


@pytest.fixture
def configs(workspace: Workspace, parts: Path) -> list[Path]:
    """Two configurations of small models on the same data."""
    written = []
    for name, model in (("ours", None), ("qwen", {"family": "qwen_vl", "path": str(parts / "qwen3_vl")})):
        raw: dict[str, Any] = yaml.safe_load(workspace(model).read_text(encoding="utf-8"))
        raw |= {"decoding": {"num_candidates": 1, "max_new_tokens": 3}}
        raw["eval"] = {"split": "validation", "controls": [], "systems": [{"name": "ignored", "kind": "checkpoint"}]}
        path = Path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        written.append(path)
    return written


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.run(benchmark.main, benchmark.arguments(), ["families", *map(str, arguments)])
    return int(str(exit_info.value.code))


@pytest.mark.slow
def test_two_families_with_two_seeds_stand_in_one_report_and_nothing_is_trained_twice(configs: list[Path]) -> None:
    program = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "families", *map(str, configs), "--steps", "1", "--name", "both"]
    completed = subprocess.run(program, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    table = Path("results/both/families.md").read_text(encoding="utf-8")
    assert table in completed.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith(("| ours", "| qwen"))]
    assert [row[:2] for row in rows] == [["ours", "siglip_qwen"], ["qwen", "qwen_vl"]]
    assert all(row[2].count("/") == row[3].count("/") == 1 and float(row[5]) > 0 and float(row[6]) > 0 for row in rows)
    summary = json.loads(Path("results/both/summary.json").read_text(encoding="utf-8"))
    assert {"ours-seed0", "ours-seed1", "qwen-seed0", "qwen-seed1"} <= set(summary["systems"])
    assert any({comparison["a"].split("/")[0], comparison["b"].split("/")[0]} == {"ours", "qwen"} for comparison in summary["comparisons"])
    again = subprocess.run(program, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "stage tune" not in again.stdout


def test_the_checkpoint_of_equal_time_is_the_last_within_the_time_of_the_fastest_run(tmp_path: Path) -> None:
    def run(name: str, seconds_per_step: float) -> dict[str, Any]:
        for step in (2, 4, 6, 8):
            (tmp_path / name / f"checkpoint-{step}").mkdir(parents=True)
        times = {str(step): step * seconds_per_step for step in (0, 2, 4, 6, 8)}
        return {"checkpoint": str(tmp_path / name / "checkpoint-8"), "training_seconds": times}

    chosen = equal_time_checkpoints({"fast": run("fast", 1.0), "slow": run("slow", 1.5), "slowest": run("slowest", 9.0)})
    assert {name: folder.name for name, folder in chosen.items()} == {
        "fast": "checkpoint-8",
        "slow": "checkpoint-4",  # step 5 would be reached in time
        "slowest": "checkpoint-2",  # not a single one is
    }


def test_configurations_on_other_data_are_not_compared(configs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(configs[1].read_text(encoding="utf-8"))
    configs[1].write_text(yaml.safe_dump({**raw, "data": {"folder": "elsewhere"}}), encoding="utf-8")
    assert command(*configs) == 2
    assert "qwen.yaml: its data are in elsewhere, those of ours.yaml in data/toy; the same are expected" in capsys.readouterr().err
    assert command(configs[0], configs[0]) == 2
    assert "need different file names" in capsys.readouterr().err
    assert command(configs[0], "--seeds", "1", "1") == 2
    assert "expected different ones" in capsys.readouterr().err
