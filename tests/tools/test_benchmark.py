"""`tools/benchmark.py` from the command line."""

import re
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

import cli
import config as configuration
from benchmarks.benchmark_report import BenchmarkReport
from benchmarks.full_size_models import check_comparable
from benchmarks.recipes import SIZES
from model.siglip_qwen.config import siglip_qwen_settings
from tools import benchmark


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.run(benchmark.main, benchmark.arguments(), list(arguments))
    return ended.value.code


def test_merging_is_measured_three_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("preprocess", "--images", "5", "--records", "20", "--size", "32x24") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 records on 5 images of 32x24"
    assert [line.split(":")[0] for line in lines[1:]] == ["first", "unchanged", "one annotation file touched"]
    assert all("records/s, at most" in line and "MiB" in line for line in lines[1:])


def test_reading_images_is_measured_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("images", "--size", "32x24", "--side", "16") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("JPEG of 32x24, model input 16 x 16")
    assert re.fullmatch(r"ours [\d,]+, image processor alone [\d,]+: \d+\.\d\d times", second)


def test_statistics_and_report_of_an_evaluation_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("report", "--questions", "20", "--systems", "2", "--size", "32x24") == 0
    *_, head, seconds = capsys.readouterr().out.splitlines()
    assert head == "20 questions, 2 systems, 5 candidates each; CPU seconds:"
    assert re.fullmatch(r"selection, metrics and statistics \d+\.\d, report with charts and images \d+\.\d", seconds)


def test_the_merge_benchmark_does_not_import_torch() -> None:
    code = "import benchmarks.preprocessing_speed, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(benchmark.__file__).parent.parent, check=False).returncode == 0


@pytest.mark.slow
def test_memory_is_estimated_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("memory", "--size", "8b", "--out", str(tmp_path), "model.quantization=nf4", "train.packing_length=1024") == 0
    output = capsys.readouterr().out
    assert "computed: from shapes and settings; nothing was run" in output and "rows of 1,024 tokens" in output and "in nf4" in output
    assert (tmp_path / "memory_8b.md").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("pictures", "--size", "32x24"), "pictures is called images now"),
        (("preprocess", "--pictures", "5"), "--pictures is called --images now"),
        (("memory", "--card", "12"), "--card is called --simulated-gpu now"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(arguments: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "PART"),
        (("preprocess", "--size", "640"), "--size 640"),
        (("preprocess", "--records", "0"), "--records"),
        (("images", "--size", "640x0"), "--size 640x0"),
        (("images", "--side", "0"), "--side 0"),
        (("report", "--questions", "19"), "--questions 19"),
        (("other",), "other"),
        (("train", "--size", "2b"), "--size"),
        (("train", "--rounds", "0"), "--rounds 0"),
        (("generate", "--stock-batch", "0"), "--stock-batch 0"),
        (("train", "train.nothing=1"), "train.nothing"),
        (("generate", "--against", "others"), "--against"),
        (("equality", "--steps", "0"), "--steps"),
        (("memory", "--size", "2b"), "--size"),
    ],
)
def test_wrong_arguments_exit_with_status_2(arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "size", "language", "rank"),
    [("train", "tiny", "checkpoints/tiny/qwen3", 32), ("train", "4b", "Qwen/Qwen3-4B", 64), ("generate", "8b", "Qwen/Qwen3-8B", 64)],
)
def test_a_size_is_measured_with_its_configuration_and_saved(
    part: str, size: str, language: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def measure(*arguments: Any) -> BenchmarkReport:
        calls.append(arguments)
        return BenchmarkReport("Made up", {}, ("path",), [["ours"]], {"results": []})

    monkeypatch.setattr(f"benchmarks.{'training.train_step' if part == 'train' else 'generation_speed'}.measure", measure)
    numbers = ("--samples", "7", "--rounds", "3", "--stock-batch", "2", "--against", "nothing", "--out", str(tmp_path))
    assert status_of(part, "--size", size, *numbers, "train.seed=5", "decoding.seed=5") == 0
    [(measured_size, model, section, workload, _device)] = calls
    assert (measured_size, model.language, model.lora.r, model.quantization, section.seed) == (size, language, rank, "none", 5)
    assert astuple(workload) == (7, 3, 2, False)
    assert "Made up\n\npath\n----\nours\n" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {f"{part}_{size}.json", f"{part}_{size}.md"}


@pytest.mark.parametrize("size", SIZES)
def test_the_stock_model_supports_the_configuration_of_every_size(size: str) -> None:
    recipe, *changes = SIZES[size]
    check_comparable(siglip_qwen_settings(configuration.load(Path("configs") / recipe, changes).model, "a benchmark"))
