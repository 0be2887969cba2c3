"""tools/compare.py: table and errors. The figures are tested in tests/evaluation/comparison."""

import json
from pathlib import Path

import pytest
import yaml

import cli
from tests.evaluation.fakes import evaluate, experiment, questions, write_store
from tests.fakes import FakeAnswerer, always
from tools import compare

FIELDS = ["id=id", "answer=text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of two fake systems, their data, and a configuration with the data folder."""
    folder = tmp_path_factory.mktemp("compared")
    store = write_store(folder / "data", questions(20))
    answerers = {"right": FakeAnswerer(always(("1", -0.1))), "wrong": FakeAnswerer(always(("7", -0.1)))}
    evaluate(experiment(store, folder, *answerers), lambda s: answerers[s.name], lambda _: pytest.fail("no control"))
    config = {"name": "planted", "data": {"folder": str(folder / "data")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.run(compare.main, compare.parser, [str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_both_accuracies_and_the_verdict_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = folder / "predictions" / "right.jsonl", folder / "predictions" / "wrong.jsonl"
    assert command(*files, "--config", folder / "config.yaml") == 0
    printed = capsys.readouterr().out
    assert f"a: {files[0]} (first)" in printed
    assert "60 questions with short answers" in printed
    (official,) = [line.split() for line in printed.splitlines() if line.startswith("vqa_accuracy ")]
    assert official[1:4] == ["33.3", "0.0", "+33.3"]
    assert official[-2] == "a"
    assert "vqa_accuracy_m4c" in printed


def test_the_data_folder_can_be_given_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "predictions" / "right.jsonl"
    assert command(file, file, "--data", folder / "data", "--config", folder / "config.yaml", "--choice", "first", "majority") == 0
    assert "not shown" in capsys.readouterr().out


def test_different_questions_are_reported_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "predictions" / "right.jsonl"
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    assert command(file, shorter, "--config", folder / "config.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the question sets differ" in line


def test_two_answer_fields_of_one_file_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps({"id": i, "gold": "red", "old": "red", "new": "blue"}) + "\n" for i in range(20)), encoding="utf-8")
    fields = ["--fields-a", "id=id", "answer=old", "references=gold", "--fields-b", "id=id", "answer=new"]
    assert command(file, file, *fields) == 0
    printed = capsys.readouterr().out
    assert f"a: {file} (old)" in printed
    assert f"b: {file} (new)" in printed
    assert "+100.0" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choice", "first", "first", "first"], "--choice first first first: expected one for both sides, or one per side"),
        (["--fields-b", "answer=x"], "--fields-b: id=FIELD and answer=FIELD are required"),
        (["--fields", *FIELDS, "--fields-a", *FIELDS, "--fields-b", *FIELDS], "--fields: has no effect next to"),
        (["--fields", *FIELDS, "--choice", "first"], "has no choices; name the answer's field"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": 1, "text": "red"}\n', encoding="utf-8")
    assert command(file, file, *options) == 2
    assert message in capsys.readouterr().err
