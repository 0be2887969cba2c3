"""Unusable records are dropped, counted by reason, and listed with their location."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from dataset.build.merge_report import MergeReport
from dataset.config import SplitConfig
from dataset.record_validation import DropReason
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestDropped:
    def test_every_reason_is_counted_with_its_locations(self, raw: RawFiles) -> None:
        raw.image("good.jpg")
        truncated = raw.images / raw.image("truncated.jpg", shade=1, size=(64, 48))
        truncated.write_bytes(truncated.read_bytes()[:-100])
        raw.image("wide.png", size=(100, 60))
        (raw.images / "text.jpg").write_text("404 not found")
        placeholder_in_answer = conversation("good.jpg", "?", "see <image>")
        cases: list[tuple[DropReason, Any]] = [
            (DropReason.MISSING_FILE, conversation("none.jpg", "?", "x")),
            (DropReason.UNDECODABLE, conversation("truncated.jpg", "?", "x")),
            (DropReason.UNDECODABLE, conversation("text.jpg", "?", "x")),
            (DropReason.TOO_MANY_PIXELS, conversation("wide.png", "?", "x")),
            (DropReason.EMPTY, conversation("good.jpg", " \n", "x")),
            (DropReason.EMPTY, conversation("good.jpg", "?", "")),
            (DropReason.EMPTY, conversation("good.jpg", "?", "x", " ", "y")),
            (DropReason.EMPTY, {"image": "good.jpg", "conversations": []}),
            (DropReason.IMAGE_COUNT, {**conversation(None, "?", "x"), "image": "good.jpg"}),
            (DropReason.IMAGE_COUNT, conversation("good.jpg", "<image> ?", "x")),
            (DropReason.IMAGE_COUNT, conversation(["good.jpg", "good.jpg"], "?", "x")),
            (DropReason.IMAGE_COUNT, placeholder_in_answer),
            (DropReason.UNKNOWN_ROLE, {"image": "good.jpg", "conversations": [{"from": "user", "value": "<image>"}]}),
            (DropReason.TURN_ORDER, conversation("good.jpg", "?", "x", "and?")),
            (DropReason.TURN_ORDER, {"conversations": [{"from": "gpt", "value": "x"}]}),
            (DropReason.NOT_AN_OBJECT, ["good.jpg"]),
            (DropReason.NOT_AN_OBJECT, {"image": "good.jpg", "conversations": ["?", "x"]}),
            (DropReason.BAD_ENCODING, conversation("good.jpg", "caf\ud8e9?", "x")),
            (DropReason.BAD_ENCODING, conversation("caf\ud8e9.jpg", "?", "x")),
            (DropReason.ANSWER_TYPE, {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": [3]}]}),
            (DropReason.MISSING_FIELD, {"image": "good.jpg"}),
        ]  # fmt: skip
        records = [conversation("good.jpg", "?", "x"), *(record for _, record in cases), conversation("good.jpg", "?", "y")]
        report = raw.merge(raw.llava(records), max_pixels=100 * 60 - 1)
        source_report = report.sources[0]
        expected: dict[str, list[int]] = defaultdict(list)
        for index, (reason, _) in enumerate(cases, start=1):
            expected[reason.value].append(index)
        assert source_report.dropped == {reason: len(indices) for reason, indices in expected.items()}
        for name, indices in expected.items():
            listed = [int(example.split("conversations.json: record ")[1].split(":")[0]) for example in source_report.examples[name]]
            assert listed == indices[:3], name
        assert (source_report.read, source_report.kept) == (len(records), 2)
        assert [sample.targets for sample in raw.samples()] == [("x",), ("y",)]

    def test_values_and_files_beyond_any_limit_cost_their_record_alone(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        with (raw.images / "hole.jpg").open("wb") as file:
            file.truncate(1 << 42)  # 4 TiB, without a byte on the disk
        text = json.dumps([conversation(name, "?", "x") for name in ("a.jpg", "hole.jpg")])
        nested = "[" * 30_000 + "]" * 30_000
        source = raw.llava([])
        Path(source.annotation_files[0]).write_text(
            f'{text[:-1]}, {nested}, {{"image": {"7" * 5000}, "conversations": []}}]', encoding="utf-8"
        )
        report = raw.merge(source)
        assert report.sources[0].dropped == {"not an object": 1, "missing field": 1, "too large for memory": 1}
        assert report.sources[0].kept == 1

    @pytest.mark.parametrize("answers", [[1.5, 2], [None], {"a": 1}, True, [["x"]], [{"text": "x"}]])
    def test_answers_of_an_unknown_type_are_counted(self, raw: RawFiles, answers: Any) -> None:
        raw.image("a.jpg")
        good = {"question": "?", "answers": ["x"], "image_file": "a.jpg"}
        report = raw.merge(raw.vqa_metadata([{**good, "answers": answers}, good]))
        assert report.sources[0].dropped == {"unknown answer type": 1}

    def test_examples_of_malformed_records_are_short_and_can_be_written(self, raw: RawFiles) -> None:
        raw.image("COCO_train2014_000000000001.jpg")
        valid = {"question_id": 1, "image_id": 1, "question": "?"}
        malformed = [{**valid, "question_id": "\ud8e9"}, {**valid, "question_id": "line\nbreak"}, {**valid, "question_id": "long" * 1000}]
        report = raw.merge(raw.vqav2([valid, *malformed], [{**valid, "answers": vqa_answers("x")}]))
        examples = report.sources[0].examples["question and annotation do not pair"]
        assert len(examples) == 3
        assert all("\n" not in example and len(example) < 500 for example in examples)
        assert MergeReport.load(raw.merged / "report.json") == report

    def test_reasons_have_the_documented_names(self) -> None:
        documented = "missing file, undecodable or truncated picture, over the pixel limit, empty question or answer, marks and pictures disagree, unknown role, not an object, bad encoding, unknown answer type"  # noqa: E501
        assert set(documented.split(", ")) <= {reason.value for reason in DropReason}

    def test_the_table_shows_sources_reasons_and_example_locations(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        records = [conversation("none.jpg", "?", "x")] * 5 + [conversation("a.jpg", "?", "x")]
        lines = raw.merge(raw.llava(records, name="mine")).table().splitlines()
        assert lines[0].split() == ["source", "read", "kept", "dropped", "samples"]
        assert lines[1].split() == ["mine", "6", "1", "5", "1"]
        assert lines[2] == "mine: 5 dropped, missing file:"
        assert lines[3].startswith(f"    {raw.folder / 'mine.json'}: record 0: ")
        assert lines[6] == "    ..."
        assert lines[-3:] == ["1 images, 1 samples", "by split: train 1, validation 0, test 0", "by language: en 1, zh 0"]

    def test_every_dropped_record_is_listed_with_its_place_and_reason(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        missing = [conversation(["none.jpg", "gone.jpg"], "<image>?", "x")] + [conversation("none.jpg", "?", "x")] * 8
        records = [*missing, conversation("a.jpg", "?", "x"), conversation("a.jpg", "caf\ud8e9?", "x"), "text", {"image": "caf\ud8e9.jpg"}]
        report = raw.merge(raw.llava(records, name="mine"))
        rows = [json.loads(line) for line in (raw.merged / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) == sum(report.sources[0].dropped.values()) == 12
        assert Counter(row["reason"] for row in rows) == report.sources[0].dropped
        assert {(row["source"], row["file"]) for row in rows} == {("mine", str(raw.folder / "mine.json"))}
        assert sorted(row["record"] for row in rows) == [*range(9), 10, 11, 12]
        (both,) = [row["detail"] for row in rows if row["record"] == 0]
        assert "none.jpg: there is no such file" in both
        assert "gone.jpg: there is no such file" in both

    def test_a_merge_without_dropped_records_leaves_an_empty_list(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        raw.merge(raw.llava([conversation("none.jpg", "?", "x"), conversation("a.jpg", "?", "x")], name="mine"))
        raw.merge(raw.llava([conversation("a.jpg", "?", "x")], name="mine"))
        assert (raw.merged / "dropped.jsonl").read_bytes() == b""

    def test_a_merge_of_which_nothing_is_left_lists_its_records_apart(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        raw.merge(raw.llava([conversation("a.jpg", "?", "x")], name="good"))
        with pytest.raises(TesseraError, match=r"all are listed in .*dropped_failed_merge\.jsonl"):
            raw.merge(raw.llava([conversation("none.jpg", "?", "x")] * 5, name="bad"))
        listed = raw.merged / "dropped_failed_merge.jsonl"
        assert len(listed.read_text(encoding="utf-8").splitlines()) == 5
        assert (raw.merged / "dropped.jsonl").read_bytes() == b""
        raw.merge(raw.llava([conversation("a.jpg", "?", "y")], name="good"))
        assert not listed.exists()
