"""Wherever one file with records is named, a list of files, wildcards, or numbers in braces may stand."""

import json
from pathlib import Path
from typing import Any

import pytest

import config as configuration
from dataset import sources
from dataset.config import DataConfig
from dataset.source_config import LlavaSource, VqaV2Source
from dataset.source_files import matching_files
from dataset.sources.record import RawSample
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation


def write(raw: RawFiles, count: int = 3) -> list[Path]:
    return [
        raw.write(f"part-{i}.json", [conversation(raw.image(f"{i}.png", i), "?", f"answer {i}"), {"image": "none"}]) for i in range(count)
    ]


@pytest.mark.parametrize("named", ["part-*.json", "part-{0..2}.json", ["part-0.json", "part-{1,2}.json"]], ids=str)
def test_a_list_a_pattern_and_braces_name_the_same_files(raw: RawFiles, named: Any) -> None:
    write(raw)
    paths = tuple(raw.folder / name for name in named) if isinstance(named, list) else raw.folder / named
    items = list(sources.read(LlavaSource(format="llava", annotations=paths, images=raw.images), DataConfig()))
    samples = [item for item in items if isinstance(item, RawSample)]
    assert [(sample.targets, sample.key) for sample in samples] == [((f"answer {i}",), f"part-{i}-0") for i in range(3)]
    assert [item.location.file for item in items] == [str(raw.folder / f"part-{i}.json") for i in (0, 0, 1, 1, 2, 2)]


def test_the_file_of_a_dropped_record_is_named(raw: RawFiles) -> None:
    write(raw)
    report = raw.merge(LlavaSource(format="llava", annotations=raw.folder / "part-*.json", images=raw.images))
    assert report.sources[0].dropped == {"missing field": 3}
    assert report.sources[0].examples["missing field"][1].startswith(f"{raw.folder / 'part-1.json'}: record 1: ")
    lines = (raw.merged / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [str(raw.folder / f"part-{i}.json") for i in range(3)]


def test_an_unreadable_image_of_a_later_file_is_listed_under_that_file(raw: RawFiles) -> None:
    write(raw)
    (raw.images / "2.png").write_bytes(b"no image")
    raw.merge(LlavaSource(format="llava", annotations=raw.folder / "part-*.json", images=raw.images))
    rows = [json.loads(line) for line in (raw.merged / "dropped.jsonl").read_text().splitlines()]
    assert [(row["file"], row["record"]) for row in rows if row["reason"].startswith("undecodable")] == [
        (str(raw.folder / "part-2.json"), 0)
    ]


def test_a_limit_counts_the_records_of_all_files(raw: RawFiles) -> None:
    write(raw)
    source = LlavaSource(format="llava", annotations=raw.folder / "part-*.json", images=raw.images, limit=3)
    assert len(list(sources.read(source, DataConfig()))) == 3


def test_a_new_file_that_a_pattern_matches_is_merged(raw: RawFiles) -> None:
    write(raw, 2)
    source = LlavaSource(format="llava", annotations=raw.folder / "part-*.json", images=raw.images)
    assert raw.merge(source).samples == 2 and raw.merge(source).reused
    write(raw, 3)
    report = raw.merge(source)
    assert not report.reused and report.samples == 3


def test_pairs_of_files_are_read_together(raw: RawFiles) -> None:
    for name in "ab":
        question = {"question_id": 1, "image_id": 1, "question": "What?"}
        raw.vqav2([question], [{"question_id": 1, "image_id": 1, "answers": [{"answer": name}]}], name=name)
    questions, annotations = raw.folder / "{a,b}_questions.json", raw.folder / "{a,b}_annotations.json"
    pairs = VqaV2Source(format="vqav2", images=raw.images, questions=questions, annotations=annotations)
    items = list(sources.read(pairs, DataConfig()))
    assert [item.targets for item in items if isinstance(item, RawSample)] == [("a",), ("b",)]
    unequal = VqaV2Source(format="vqav2", images=raw.images, questions=questions, annotations=raw.folder / "a_annotations.json")
    with pytest.raises(UsageError, match="format vqav2 has pairs of files, but 2 in questions and 1 in annotations"):
        list(sources.read(unequal, DataConfig()))


def test_a_file_with_the_name_of_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].json").write_text("[]")
    (tmp_path / "a1.json").write_text("[]")
    assert matching_files(tmp_path / "a[1].json") == [tmp_path / "a[1].json"]


def test_a_pattern_without_a_file_is_an_error_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("name: x\ndata: {sources: [{format: llava, annotations: [a.json, 'b-*.json']}]}\n")
    Path("a.json").write_text("[]")
    with pytest.raises(UsageError, match=r"data\.sources\.0\.annotations: b-\*\.json does not exist"):
        configuration.check_source_paths(configuration.load(Path("c.yaml")))
