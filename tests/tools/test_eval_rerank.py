"""tools/eval_rerank.py end to end, with untrained models: exit status, printed tables, files."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import cli
from model.checkpoint_manifest import write_manifest
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from tests.evaluation.fakes import questions, write_store
from tools import eval_rerank

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def experiment(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with merged data and untrained checkpoints, in its own folder."""
    folder = tmp_path_factory.mktemp("experiment")
    write_store(folder / "data", questions(3) + questions(2, "validation"))
    model: dict[str, Any] = {"vision": str(parts / "siglip"), "language": str(parts / "qwen3"), "max_length": 512, "lora": None}
    torch.manual_seed(0)
    settings = SiglipQwenConfig(**model)
    weights = configure_trainable(build(settings, image_token_id=processor.image_token_id), settings, ["connector"])
    for name in ("early", "late"):
        path = folder / name
        checkpoint.save(weights, path)
        processor.save(path)
        write_manifest(path)
    config = {
        "name": "planted",
        "data": {"folder": str(folder / "data")},
        "model": model,
        "decoding": {"num_candidates": 3, "max_new_tokens": 4, "batch_size": 4},
        "rerank": {"clip": str(parts / "clip"), "tune": True},
        "eval": {
            "systems": [
                {"name": "ours", "kind": "checkpoint", "path": str(folder / "early")},
                {"name": "baseline", "kind": "qwen3_vl", "path": str(parts / "qwen3_vl"), "quantization": "none"},
            ],
            "controls": ["shuffled_images", "untuned"],
            "resamples": 100,
            "description_tokens": 6,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.run(eval_rerank.main, eval_rerank.parser, [str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_configured_systems_are_evaluated_and_reported(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--config", experiment / "config.yaml", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert len(printed.splitlines()) <= 25 and max(map(len, printed.splitlines())) <= 100
    assert "ours/reranked" not in printed
    assert command("--config", experiment / "config.yaml", "--out", tmp_path, "--tables") == 0
    assert "ours/reranked" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert {name: figures["kind"] for name, figures in summary["systems"].items()} == {"ours": "checkpoint", "baseline": "qwen3_vl"}
    assert summary["controls"].keys() == {"shuffled_images", "untuned"}
    assert summary["rerank"]["chosen_on"] in ("validation", "default")
    for name in ("ours", "baseline"):
        lines = (tmp_path / "predictions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 12
        row = json.loads(lines[0])
        assert row["error"] is None
        assert 1 <= len(row["candidates"]) <= 3
        assert row["candidates"][0].keys() >= {"text", "log_prob", "mean_log_prob", "clip", "fused"}
        assert row["prompt"]
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "report.md", "rerank.png", "accuracy_by_category.png"}


def test_checkpoints_and_names_select_the_systems(experiment: Path, tmp_path: Path) -> None:
    given = ("--checkpoints", experiment / "early", experiment / "late", "--systems", "early", "late", "--limit", "4", "--out", tmp_path)
    assert command("eval.controls=[]", "rerank.tune=false", "--config", experiment / "config.yaml", *given) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["systems"]) == ["early", "late"]
    assert summary["dataset"]["questions"] == 4
    # The two folders hold the same weights.
    assert all(row["difference"] == 0.0 for row in summary["comparisons"])


@pytest.mark.slow
def test_a_missed_threshold_is_printed_and_exits_with_status_1(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("rerank.tune=false", "--config", experiment / "config.yaml", "--out", tmp_path, "--systems", "ours")
    assert command("eval.thresholds.first=1.0", "eval.thresholds.untuned=1.0", *given) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "missed: eval.thresholds.first"
    assert "thresholds missed: ours, first candidate" in printed.out
    assert "Thresholds" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert command("eval.thresholds.first=0.0", *given) == 0


@pytest.mark.slow
def test_two_ranks_share_the_questions_and_write_the_same_files_as_one(experiment: Path, tmp_path: Path) -> None:
    given = ["decoding.batch_size=1", "rerank.tune=false", "--config", str(experiment / "config.yaml"), "--systems", "ours", "--out"]
    assert command(*given, tmp_path / "one") == 0
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpus.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, "--main_process_port", port, str(ROOT / "tools" / "eval_rerank.py"), *given, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert "ours, rank 0 of 2: 5/5 questions" in done.stderr
    assert "rank 1 of 2" not in done.stderr
    by_name = [{path.name: read(path) for path in (tmp_path / name / "predictions").rglob("*.jsonl*")} for name in ("one", "two")]
    assert by_name[0] == by_name[1]
    assert by_name[0].keys() == {"ours.jsonl", "shuffled_images.jsonl", "untuned.jsonl"}


def read(path: Path) -> list[dict[str, Any]]:
    """The parts of the predictions that must not depend on the number of ranks."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{"id": row["sample_id"], "texts": [c["text"] for c in row["candidates"]], "choices": row["choices"]} for row in rows]


@pytest.fixture
def finished_run(experiment: Path, tmp_path: Path) -> Path:
    """A run folder with two checkpoints, as training writes it."""
    for name, step in (("early", 20), ("late", 300)):
        shutil.copytree(experiment / name, tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def test_a_curve_evaluates_all_checkpoints_of_a_run_and_nothing_else(
    experiment: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--config", experiment / "config.yaml", "--curve", finished_run, "--limit", "6", "--out", tmp_path / "out")
    assert command("rerank.tune=false", *given) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["curve"] == {"checkpoint-20": 20, "checkpoint-300": 300}
    # The baseline and the control runs of the configuration are not part of a curve.
    assert list(summary["systems"]) == ["checkpoint-20", "checkpoint-300"]
    assert "controls" not in summary
    assert [figures["model"]["path"] for figures in summary["systems"].values()] == [str(finished_run / name) for name in summary["curve"]]
    between = {(row["a"], row["b"]) for row in summary["comparisons"] if row["a"].split("/")[0] != row["b"].split("/")[0]}
    assert between == {(f"checkpoint-300/{choice}", f"checkpoint-20/{choice}") for choice in ("first", "reranked")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "From step 20 to step 300 accuracy goes from" in page
    assert "pick it on the validation split" in page
    assert "pick it on the validation split" in printed
    with Image.open(tmp_path / "out" / "learning_curve.png") as image:
        assert image.width > 500


def test_a_curve_with_named_checkpoints_or_of_a_single_checkpoint_is_an_error(
    experiment: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = ("--config", experiment / "config.yaml")
    assert command(*configured, "--curve", finished_run, "--checkpoints", experiment / "early") == 2
    assert "cannot be combined with --checkpoints" in capsys.readouterr().err
    shutil.rmtree(finished_run / "checkpoint-300")
    assert command(*configured, "--curve", finished_run) == 2
    assert "expected at least two checkpoint-<step> folders, found 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "other"], "--systems: eval.systems has no other"),
        (["--limit", "0"], "--limit 0: expected a number of questions"),
        (["--checkpoints", "nowhere"], "--checkpoints nowhere: there is no such folder"),
        (["rerank.clip=./nowhere/at/all"], "rerank.clip: ./nowhere/at/all does not exist"),
        (["data.folder=./nowhere"], "run python tools/preprocess.py --config "),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    experiment: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command("--config", experiment / "config.yaml", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_lists_the_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval_rerank.py"])
    with pytest.raises(SystemExit) as ended:
        eval_rerank.parser.parse_args(["--help"])
    assert ended.value.code == 0
    assert "--checkpoints" in capsys.readouterr().out
