"""`tools/preprocess.py` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import cli
from tools import preprocess

ROOT = Path(__file__).parents[2]


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.run(preprocess.main, preprocess.parser, ["--config", "config.yaml", *arguments])
    return ended.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration with one source that has a valid and an invalid record, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "pictures" / "a.jpg")
    records = [{"image_id": f"{name}.jpg", "caption": ["一个红色的正方形"]} for name in ("a", "none")]
    (tmp_path / "captions.json").write_text(json.dumps(records), encoding="utf-8")
    source = {"format": "ai_challenger", "annotations": "captions.json", "images": "pictures"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": "small", "data": {"sources": [source]}}), encoding="utf-8")
    return tmp_path


def test_it_merges_and_prints_the_report_and_the_written_files(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "preprocess.py"), "--config", "config.yaml", "--json", "pair"]
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert lines[1].split() == ["ai_challenger", "2", "1", "1", "1"]
    assert (
        "ai_challenger: 1 dropped, missing file:\n    captions.json: record 1: pictures/none.jpg: there is no such file" in completed.stdout
    )
    assert "1 images, 1 samples" in lines
    assert "by language: en 0, zh 1" in lines
    assert lines[-2:] == [
        f"written to {Path('data/small')}: images.parquet, samples.parquet, report.json, dropped.jsonl",
        "written to pair: image_map.json, annotations.json",
    ]
    written = {path.name for path in (folder / "data" / "small").iterdir()}
    assert written == {"images.parquet", "samples.parquet", "report.json", "dropped.jsonl", "cache"}
    assert f"all 1 dropped records: {Path('data/small/dropped.jsonl')}" in lines
    assert json.loads((folder / "pair" / "image_map.json").read_text(encoding="utf-8"))[0]["path"] == "pictures/a.jpg"


def test_a_second_run_reports_that_nothing_has_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of() == 0
    first = capsys.readouterr().out.splitlines()
    assert status_of() == 0
    second = capsys.readouterr().out.splitlines()
    assert second[:-1] == first[:-1]
    assert second[-1] == f"{Path('data/small')} is up to date: no setting and no file has changed since the last merge"
    (folder / "pictures" / "none.jpg").write_bytes((folder / "pictures" / "a.jpg").read_bytes())
    assert status_of() == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["ai_challenger", "2", "2", "0", "2"]


def test_a_wrong_configuration_exits_with_status_2_and_names_the_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for override, key in (("data.sources.0.annotations=none.json", "data.sources.0.annotations"), ("data.sources.0.limits=3", "limits")):
        assert status_of(override) == 2
        error = capsys.readouterr().err
        assert key in error
        assert error.count("\n") == 1
    assert not (folder / "data").exists()


def test_an_invalid_file_exits_with_status_1_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "captions.json").write_text('[{"image_id": "a.jpg",\n "caption" ["x"]}]', encoding="utf-8")
    assert status_of() == 1
    assert "error: captions.json: not valid JSON at line 2 column 12" in capsys.readouterr().err
    assert not (folder / "data" / "small" / "report.json").exists()


def test_a_merge_without_samples_exits_with_status_1_and_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pictures" / "a.jpg").unlink()
    assert status_of() == 1
    error = capsys.readouterr().err
    assert "no sample is left of 2 records" in error
    assert "2 dropped, missing file" in error
