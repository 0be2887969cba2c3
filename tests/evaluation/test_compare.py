"""Comparing stored predictions."""

import json
from pathlib import Path

import pytest

from errors import TesseraError, UsageError
from evaluation.compare import compare_files
from tests.evaluation.conftest import Written
from tests.evaluation.planted import questions, write_store


@pytest.fixture
def files(written: Written) -> tuple[Path, Path]:
    folder = written.planned.out / "predictions"
    return folder / "careful.jsonl", folder / "dull.jsonl"


def test_two_files_give_the_figures_of_the_run(written: Written, files: tuple[Path, Path]) -> None:
    result = compare_files(*files, written.planned.store, [], 200, 0)
    systems = written.outcome.summary["systems"]
    official, m4c = result.metrics
    assert result.questions == 25
    assert official.a == pytest.approx(systems["careful"]["choices"]["reranked"]["vqa_accuracy"])
    assert m4c.b == pytest.approx(systems["dull"]["choices"]["reranked"]["vqa_accuracy_m4c"])
    assert official.difference.difference == pytest.approx(official.a - official.b)
    assert official.verdict == "a"
    assert "vqa_accuracy_m4c" in result.table()


def test_a_file_against_itself_shows_nothing(written: Written, files: tuple[Path, Path]) -> None:
    for metric in compare_files(files[0], files[0], written.planned.store, [], 200, 0).metrics:
        assert (metric.difference.difference, metric.difference.p_value, metric.verdict) == (0.0, 1.0, "not shown")


def test_two_choices_of_one_file_can_be_compared(written: Written, files: tuple[Path, Path]) -> None:
    result = compare_files(files[0], files[0], written.planned.store, ["reranked", "first"], 200, 0)
    assert result.metrics[0].difference.difference > 0
    assert (result.a, result.b) == (f"{files[0]} (reranked)", f"{files[0]} (first)")


def without(path: Path, place: int, out: Path) -> Path:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:place] + lines[place + 1 :]), encoding="utf-8")
    return out


def test_different_question_sets_are_an_error(written: Written, files: tuple[Path, Path], tmp_path: Path) -> None:
    shorter = without(files[1], 4, tmp_path / "shorter.jsonl")
    with pytest.raises(UsageError, match="the question sets differ: 1 of"):
        compare_files(files[0], shorter, written.planned.store, [], 200, 0)
    with pytest.raises(UsageError, match="the question sets differ: 1 of"):
        compare_files(shorter, files[0], written.planned.store, [], 200, 0)


def test_questions_that_the_data_does_not_hold_are_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not in"):
        compare_files(*files, write_store(tmp_path, questions(2)), [], 200, 0)


@pytest.mark.parametrize("choices", [["oracle"], ["best"], ["first", "first", "first"]])
def test_only_choices_that_a_user_could_use_are_compared(written: Written, files: tuple[Path, Path], choices: list[str]) -> None:
    with pytest.raises(UsageError, match="--choice|there is no choice"):
        compare_files(*files, written.planned.store, choices, 200, 0)


def test_an_unfinished_file_and_a_broken_line_are_named(written: Written, files: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [json.loads(line) | {"choices": {}} for line in files[0].read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UsageError, match="has not finished"):
        compare_files(path, files[0], written.planned.store, [], 200, 0)
    path.write_text('{"sample_id": "x"}\n', encoding="utf-8")
    with pytest.raises(TesseraError, match="line 1: expected a prediction"):
        compare_files(path, files[0], written.planned.store, [], 200, 0)
