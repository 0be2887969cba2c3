"""A merge keeps every valid sample exactly once, with its own answers and images."""

import hashlib
import json
import os
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset.build import image_validation
from dataset.build import merge as merging
from dataset.build.merge_report import MergeReport
from dataset.config import SplitConfig
from dataset.loading.image_io import read_image_file
from dataset.loading.packed_images import file_of_image
from dataset.loading.sample_store import SampleStore
from dataset.record_validation import DropReason
from dataset.sample import Message
from dataset.source_config import LlavaSource, MessagesSource, source_names
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestNothingIsLost:
    def test_samples_with_the_same_image_are_all_kept(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        detail = raw.llava([conversation("a.jpg", "Describe.", "A cat on a mat.")], name="detail")
        reasoning = raw.llava([conversation("a.jpg", "Why?", "It is warm."), conversation("a.jpg", "Where?", "Inside.")], name="reasoning")
        report = raw.merge(detail, reasoning)
        assert (report.images, report.samples) == (1, 3)
        assert [sample.targets[0] for sample in raw.samples()] == ["A cat on a mat.", "It is warm.", "Inside."]
        assert {sample.image_ids for sample in raw.samples()} == {(0,)}

    def test_answers_stay_with_their_questions_where_id_ranges_overlap(self, raw: RawFiles) -> None:
        for i in (1, 2):
            raw.image(f"COCO_train2014_{i:012d}.jpg", shade=i)
            raw.image(f"COCO_val2014_{i:012d}.jpg", shade=10 + i)

        def source(subtype: str) -> Any:
            questions = [{"question_id": i, "image_id": i, "question": f"{subtype} {i}?"} for i in (1, 2)]
            annotations = [{"question_id": i, "image_id": i, "answers": vqa_answers(*[f"{subtype} answer {i}"] * 10)} for i in (2, 1)]
            return raw.vqav2(questions, annotations, subtype, name=subtype)

        raw.merge(source("train2014"), source("val2014"))
        store = SampleStore(raw.merged)
        assert len(store) == 4
        for sample in store.samples():
            subtype, number = sample.messages[0].content.removeprefix("<image>\n").removesuffix("?").split()
            assert sample.answers == (f"{subtype} answer {number}",) * 10
            assert store.image(sample.image_ids[0]).path.name == f"COCO_{subtype}_{int(number):012d}.jpg"
        assert len({sample.sample_id for sample in raw.samples()}) == 4

    def test_all_turns_of_a_conversation_are_kept(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        turns = ["What?", "A cat.", "Which colour?", "Grey.", "Sure?", "Yes."]
        raw.merge(raw.llava([conversation("a.jpg", *turns)]))
        [sample] = raw.samples()
        assert [message.content for message in sample.messages] == ["<image>\nWhat?", *turns[1:5]]
        assert [message.role for message in sample.messages] == ["user", "assistant", "user", "assistant", "user"]
        assert sample.targets == ("Yes.",)


class TestImages:
    def test_files_with_the_same_bytes_are_one_image(self, raw: RawFiles) -> None:
        for name in ("a.jpg", "b.jpg"):
            raw.image(name)
        raw.image("c.jpg", shade=1)
        captions = raw.ai_challenger([{"image_id": "b.jpg", "caption": ["图"]}, {"image_id": "c.jpg", "caption": ["猫"]}])
        report = raw.merge(raw.llava([conversation("a.jpg", "?", "x")]), captions)
        assert (report.images, report.samples) == (2, 3)
        rows = list(SampleStore(raw.merged).images())
        assert [(row.image_id, row.path.name, row.source) for row in rows] == [(0, "a.jpg", "llava"), (1, "c.jpg", "ai_challenger")]
        assert [sample.image_ids for sample in raw.samples()] == [(0,), (0,), (1,)]

    def test_size_is_after_exif_rotation_and_the_digest_is_of_the_file(self, raw: RawFiles) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        raw.image("a.jpg", size=(30, 20), exif=exif)
        raw.merge(raw.llava([conversation("a.jpg", "?", "x")]))
        row = SampleStore(raw.merged).image(0)
        digest = hashlib.sha256((raw.images / "a.jpg").read_bytes()).hexdigest()
        assert (row.width, row.height, row.sha256) == (20, 30, digest)
        assert SampleStore(raw.merged).load_image(0).size == (20, 30)

    def test_embedded_images_are_packed_by_their_content(self, raw: RawFiles) -> None:
        data = (raw.images / raw.image("a.png")).read_bytes()
        other = (raw.images / raw.image("b.jpg", shade=1)).read_bytes()
        path = raw.folder / "rows.parquet"
        turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]
        images = [[{"bytes": content, "path": "x"}] for content in (data, other, data, b"no picture")]
        pq.write_table(pa.table({"messages": [turns] * 4, "images": images}), path)
        report = raw.merge(MessagesSource(format="messages", path=path), raw.llava([conversation("a.png", "?", "x")]))
        assert (report.images, report.samples) == (2, 4)
        assert report.sources[0].dropped == {DropReason.UNDECODABLE: 1}
        first, second = SampleStore(raw.merged).images()
        assert {file_of_image(str(row.path)) for row in (first, second)} == {raw.merged / "packed" / "images-00000.tar"}
        assert (read_image_file(first.path), read_image_file(second.path)) == (data, other)
        with tarfile.open(raw.merged / "packed" / "images-00000.tar") as shard:
            assert shard.getnames()[:2] == [f"{first.sha256}.png", f"{second.sha256}.jpg"]

    def test_paths_are_stored_as_the_configuration_gives_them(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(raw.folder)
        raw.image("a.jpg")
        path = raw.write("c.json", [conversation("a.jpg", "?", "x")])
        source = LlavaSource(format="llava", annotations=path, images=Path("pictures"))
        for _ in range(2):  # the second time from the cache
            merging.merge(raw.config(source), raw.merged)
            assert SampleStore(raw.merged).image(0).path == Path("pictures/a.jpg")
            os.utime(path)

    def test_an_image_of_dropped_samples_only_is_left_out(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        raw.image("b.jpg", shade=1)
        records = [conversation(["b.jpg", "none.jpg"], "<image>?", "x"), conversation("a.jpg", "?", "x")]
        report = raw.merge(raw.llava(records))
        assert (report.images, report.samples) == (1, 1)
        assert [row.path.name for row in SampleStore(raw.merged).images()] == ["a.jpg"]


class TestSamples:
    def test_repeat_multiplies_training_samples_only_and_ids_stay_unique(self, raw: RawFiles) -> None:
        for i in range(40):
            raw.image(f"{i}.jpg", shade=i)
        source = raw.llava([conversation(f"{i}.jpg", "?", f"{i}") for i in range(40)], repeat=3)
        report = raw.merge(source, split=HALVES)
        by_text: dict[str, list[Any]] = defaultdict(list)
        for sample in raw.samples():
            by_text[sample.targets[0]].append(sample)
        assert len(by_text) == 40
        assert all(len(same) == (3 if same[0].split == "train" else 1) for same in by_text.values())
        assert all(len({sample.image_ids for sample in same}) == 1 for same in by_text.values())
        assert len({sample.sample_id for sample in raw.samples()}) == report.samples == report.sources[0].samples
        assert report.sources[0].kept == 40
        assert report.by_split["train"] == 3 * (40 - report.by_split["validation"] - report.by_split["test"])
        assert min(report.by_split.values()) > 0

    def test_sample_ids_are_unique_even_if_the_ids_of_the_source_are_not(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        records = [{"id": key, "question": "?", "answers": ["x"], "image_file": "a.jpg"} for key in ("7", 7, "7#2", "7", "7_2", "7#copy2")]
        raw.merge(raw.vqa_metadata(records, repeat=2))
        ids = [sample.sample_id for sample in raw.samples()]
        assert len(set(ids)) == len(ids) == 12
        assert ids[0] == "vqa_metadata/7"

    def test_sample_ids_begin_with_the_name_of_the_source(self, raw: RawFiles) -> None:
        raw.merge(raw.llava([conversation(None, "?", "x")], name="chat"), raw.llava([conversation(None, "!", "y")]))
        assert [(sample.sample_id, sample.source) for sample in raw.samples()] == [("chat/0", "chat"), ("llava/0", "llava")]

    @pytest.mark.parametrize(
        ("question", "answer", "language"),
        [
            ("What?", "A cat.", "en"),
            ("这是什么？", "A cat.", "zh"),
            ("Say it in Chinese.", "猫", "zh"),
            ("café? …", "„x“ ひ", "en"),
            ("𠀋?", "x", "zh"),
        ],
    )
    def test_language_is_zh_if_there_is_an_ideograph(self, raw: RawFiles, question: str, answer: str, language: str) -> None:
        report = raw.merge(raw.llava([conversation(None, question, answer)]))
        assert [sample.language for sample in raw.samples()] == [language]
        assert report.by_language == {"en": int(language == "en"), "zh": int(language == "zh")}

    def test_the_language_of_a_vqa_sample_is_that_of_its_question(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        raw.merge(raw.vqa_metadata([{"question": "what does the sign say?", "answers": ["出口"], "image_file": "a.jpg"}]))
        assert raw.samples()[0].language == "en"

    def test_default_names_are_numbered_and_explicit_names_must_be_unique(self, raw: RawFiles) -> None:
        sources = [raw.llava([], **settings) for settings in ({}, {"name": "llava-2"}, {}, {"name": "x"})]
        assert source_names(tuple(sources)) == ["llava", "llava-2", "llava-3", "x"]
        with pytest.raises(UsageError, match="the name 'x' is used twice"):
            source_names((sources[3], sources[3]))
        with pytest.raises(UsageError, match=r"data\.sources: empty"):
            source_names(())


class TestResult:
    def test_report_json_has_the_documented_keys(self, raw: RawFiles) -> None:
        raw.image("a.jpg")
        report = raw.merge(raw.llava([conversation("a.jpg", "?", "x"), conversation("none.jpg", "?", "x")]))
        content = json.loads((raw.merged / "report.json").read_text(encoding="utf-8"))
        assert {"sources", "images", "samples", "by_split", "by_language", "image_files", "near_duplicates"} == set(content)
        [source] = content["sources"]
        assert {key: source[key] for key in ("format", "read", "kept", "dropped")} == {
            "format": "llava", "read": 2, "kept": 1, "dropped": {"missing file": 1},
        }  # fmt: skip
        assert list(source["examples"]) == ["missing file"]
        assert MergeReport.load(raw.merged / "report.json") == report

    def test_the_tables_load_with_hugging_face_datasets(self, raw: RawFiles, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        raw.image("a.jpg")
        raw.merge(raw.llava([conversation("a.jpg", "?", "x")]))
        for name, column in (("images", "sha256"), ("samples", "messages")):
            rows = datasets.load_dataset("parquet", data_files=str(raw.merged / f"{name}.parquet"), cache_dir=str(tmp_path / "hub"))[
                "train"
            ]
            assert len(rows) == 1
            assert column in rows.column_names

    def test_the_same_input_gives_the_same_bytes_with_any_number_of_processes(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_validation, "MIN_IMAGES_FOR_POOL", 4)
        for i in range(12):
            raw.image(f"{i}.jpg", shade=i)
        records = [conversation([f"{i}.jpg", f"{(i * 5) % 12}.jpg"], "<image>?", f"{i}") for i in range(12)]
        source = raw.llava([*records, conversation("none.jpg", "?", "x")])
        results = []
        for workers in (1, 2):
            shutil.rmtree(raw.merged, ignore_errors=True)
            raw.merge(source, split=HALVES, workers=workers)
            results.append((*raw.parquet(), (raw.merged / "report.json").read_bytes()))
        assert results[0] == results[1]

    def test_long_texts_and_many_repeats_are_written_in_small_row_groups(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dataset.build.record_buffer.CHARACTERS_PER_BATCH", 1000)
        monkeypatch.setattr("dataset.build.parquet_tables.ROWS_PER_BATCH", 8)
        report = raw.merge(raw.llava([conversation(None, "?", f"{i}" * 300) for i in range(10)], repeat=4))
        assert report.samples == 40
        assert [sample.targets[0] for sample in raw.samples()] == [f"{i // 4}" * 300 for i in range(40)]
        file = pq.ParquetFile(raw.merged / "samples.parquet")
        assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) == 8

    def test_several_batches_of_samples_are_written_in_order(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dataset.build.record_buffer.ROWS_PER_BATCH", 7)
        for i in range(5):
            raw.image(f"{i}.jpg", shade=i)
        records = [conversation(f"{i % 5}.jpg" if i % 3 else None, f"{i}?", f"{i}") for i in range(50)]
        dropped = [conversation("none.jpg", "?", "x")] * 8
        raw.merge(raw.llava([*records[:20], *dropped, *records[20:]], repeat=2))
        samples = raw.samples()
        assert [sample.targets[0] for sample in samples] == [str(i // 2) for i in range(100)]
        assert all(
            sample.messages == (Message("user", ("<image>\n" if i // 2 % 3 else "") + f"{i // 2}?"),) for i, sample in enumerate(samples)
        )
        store = SampleStore(raw.merged)
        named = [store.image(sample.image_ids[0]).path.name if sample.image_ids else None for sample in samples[::2]]
        assert named == [f"{i % 5}.jpg" if i % 3 else None for i in range(50)]


def test_the_report_states_the_shares_of_a_mix(raw: RawFiles) -> None:
    first = raw.llava([conversation(raw.image(f"{i}.png", i), "?", "x") for i in range(3)], name="first", weight=1)
    second = raw.llava([conversation(raw.image("9.png", 9), "?", "y")], name="second", weight=3)
    report = raw.merge(first, second)
    assert [(source.training_samples, source.training_share) for source in report.sources] == [(3, 0.25), (1, 0.75)]
    assert "shares of the sources in a training epoch: first 25.0 %, second 75.0 %" in report.table()
    assert raw.merge(first, second).reused
