"""Each format is read as published; unusable records are rejected with reason and location."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason
from dataset.sample import Message
from dataset.source_config import AiChallengerSource, CocoCaptionsSource, LlavaSource, MessagesSource, Source, VqaMetadataSource
from dataset.sources.record import RawSample, RejectedRecord
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers


def read(source: Source, options: DataConfig | None = None) -> list[RawSample]:
    items = list(sources.read(source, options or DataConfig()))
    assert all(isinstance(item, RawSample) for item in items), items
    return [item for item in items if isinstance(item, RawSample)]


def rejected(source: Source) -> list[tuple[str, DropReason]]:
    return [(str(item.location), item.reason) for item in sources.read(source, DataConfig()) if isinstance(item, RejectedRecord)]


def chat_messages(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


class TestAiChallenger:
    @pytest.mark.parametrize(("image", "caption"), [("image_id", "caption"), ("image", "conversations"), ("image_id", "conversations")])
    def test_all_captions_are_targets_under_either_pair_of_keys(self, raw: RawFiles, image: str, caption: str) -> None:
        [sample] = read(raw.ai_challenger([{"url": "http://x", image: "a.jpg", caption: ["一只猫 ", "猫在睡觉\n"]}]))
        assert sample.targets == sample.answers == ("一只猫", "猫在睡觉")
        assert (sample.task, sample.images) == ("caption", (raw.images / "a.jpg",))
        assert sample.messages[0].content in ("<image>\n这幅图像描述了什么？", "<image>\n这幅图像中有什么？")

    def test_question_templates_are_about_equally_frequent_and_chosen_reproducibly(self, raw: RawFiles) -> None:
        records = [{"image_id": f"{i}.jpg", "caption": ["图"]} for i in range(400)]
        asked = [sample.messages[0].content for sample in read(raw.ai_challenger(records))]
        assert len(set(asked)) == 2
        assert 150 < asked.count("<image>\n这幅图像中有什么？") < 250
        assert asked == [sample.messages[0].content for sample in read(raw.ai_challenger(records))]
        shifted = [sample.messages[0].content for sample in read(raw.ai_challenger(records[1:]))]
        assert shifted == asked[1:], "the question of a record does not depend on its position"
        assert asked != [sample.messages[0].content for sample in read(raw.ai_challenger(records), DataConfig(seed=1))]

    def test_the_questions_can_be_set(self, raw: RawFiles) -> None:
        [sample] = read(raw.ai_challenger([{"image_id": "a.jpg", "caption": ["图"]}], questions=("有什么？",)))
        assert sample.messages == (Message("user", "<image>\n有什么？"),)

    def test_blank_captions_are_skipped(self, raw: RawFiles) -> None:
        [sample] = read(raw.ai_challenger([{"image_id": "a.jpg", "caption": ["", "猫", " "]}]))
        assert sample.targets == ("猫",)

    def test_images_are_next_to_the_annotations_by_default(self, raw: RawFiles) -> None:
        path = raw.write("captions.json", [{"image_id": "a.jpg", "caption": ["图"]}])
        [sample] = read(AiChallengerSource(format="ai_challenger", annotations=path))
        assert sample.images == (raw.folder / "a.jpg",)


class TestLlava:
    def test_all_turns_are_kept_with_their_line_breaks(self, raw: RawFiles) -> None:
        [sample] = read(raw.llava([conversation("a.jpg", "Why?\n\nSay more.", "Because.\n\n- one\n- two", "Really?", "Yes.\n")]))
        assert sample.messages == (
            Message("user", "<image>\nWhy?\n\nSay more."),
            Message("assistant", "Because.\n\n- one\n- two"),
            Message("user", "Really?"),
        )
        assert sample.targets == sample.answers == ("Yes.\n",)

    @pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "Look: <image> What is it?"])
    def test_the_placeholder_keeps_its_position(self, raw: RawFiles, question: str) -> None:
        record = {"image": "a.jpg", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]}
        [sample] = read(raw.llava([record]))
        assert sample.messages[0].content == question

    def test_a_conversation_may_have_no_image_or_several(self, raw: RawFiles) -> None:
        several = conversation(["a.jpg", "b.jpg"], "and <image>: which is red?", "The first.")
        none, two = read(raw.llava([conversation(None, "Hello", "Hi."), several]))
        assert none.images == ()
        assert two.images == (raw.images / "a.jpg", raw.images / "b.jpg")

    def test_unknown_roles_are_rejected(self, raw: RawFiles) -> None:
        record = {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "bing", "value": "A cat."}]}
        assert rejected(raw.llava([record])) == [("record 0", DropReason.UNKNOWN_ROLE)]


class TestCocoCaptions:
    def test_captions_are_grouped_by_image_id(self, raw: RawFiles) -> None:
        images = [{"id": 7, "file_name": "b.jpg", "width": 1}, {"id": 3, "file_name": "a.jpg"}]
        annotations = [{"id": 1, "image_id": i, "caption": text} for i, text in ((3, "A cat. "), (7, "A dog."), (3, "Cat!\n"))]
        dog, cat = read(raw.coco_captions(images, annotations))
        assert (dog.images, dog.targets) == ((raw.images / "b.jpg",), ("A dog.",))
        assert (cat.images, cat.answers) == ((raw.images / "a.jpg",), ("A cat.", "Cat!"))

    def test_unpaired_entries_are_rejected(self, raw: RawFiles) -> None:
        images = [
            {"id": 1, "file_name": "a.jpg"},
            {"id": 2, "file_name": "b.jpg"},
            {"id": 4, "file_name": "c.jpg"},
            {"id": 4, "file_name": "d.jpg"},
            5,
        ]
        annotations = [
            {"image_id": 1, "caption": "x"},
            {"image_id": 9, "caption": "y"},
            {"caption": "z"},
            "w",
            {"image_id": 4, "caption": "v"},
        ]
        assert rejected(raw.coco_captions(images, annotations)) == [
            ("image 1", DropReason.EMPTY),
            ("image 2", DropReason.UNPAIRED),
            ("image 3", DropReason.UNPAIRED),
            ("image 4", DropReason.NOT_AN_OBJECT),
            ("annotation 2", DropReason.MISSING_FIELD),
            ("annotation 3", DropReason.NOT_AN_OBJECT),
            ("annotation 1", DropReason.UNPAIRED),
        ]

    def test_a_file_without_its_lists_is_an_error(self, raw: RawFiles) -> None:
        source = CocoCaptionsSource(format="coco_captions", annotations=raw.write("captions.json", {"images": []}))
        with pytest.raises(TesseraError, match="it has no 'annotations'"):
            read(source)
        Path(source.annotation_files[0]).write_text("[]")
        with pytest.raises(TesseraError, match="expected an object with the lists"):
            read(source)


class TestVqaV2:
    QUESTIONS = ({"question_id": 10, "image_id": 1, "question": "What? "}, {"question_id": 20, "image_id": 2, "question": "How many?"})
    ANNOTATIONS = (
        {"question_id": 20, "image_id": 2, "answers": vqa_answers(*["2"] * 6, *["3"] * 4)},
        {"question_id": 10, "image_id": 1, "answers": vqa_answers("cat", "dog", "dog", "", *["cat"] * 6)},
    )

    def test_questions_and_answers_are_joined_by_question_id(self, raw: RawFiles) -> None:
        what, how_many = read(raw.vqav2(self.QUESTIONS, self.ANNOTATIONS))
        assert (what.key, what.messages, what.targets) == ("10", (Message("user", "<image>\nWhat?"),), ("cat",))
        assert what.answers == ("cat", "dog", "dog", "", *["cat"] * 6)
        assert (how_many.key, how_many.targets, len(how_many.answers)) == ("20", ("2",), 10)

    def test_all_answers_are_targets_with_vqa_target_sample(self, raw: RawFiles) -> None:
        what, _ = read(raw.vqav2(self.QUESTIONS, self.ANNOTATIONS), DataConfig(vqa_target="sample"))
        assert what.targets == ("cat", "dog", "dog", *["cat"] * 6)

    def test_a_tie_between_answers_goes_to_the_first(self, raw: RawFiles) -> None:
        annotations = [{"question_id": 10, "image_id": 1, "answers": vqa_answers(*["b", "a"] * 5)}]
        assert read(raw.vqav2(self.QUESTIONS[:1], annotations))[0].targets == ("b",)

    @pytest.mark.parametrize("name", ["COCO_train2014_000000000001.jpg", "000000000001.jpg"])
    def test_images_with_the_names_of_2014_and_2017_are_found(self, raw: RawFiles, name: str) -> None:
        raw.image(name)
        what, missing = read(raw.vqav2(self.QUESTIONS, self.ANNOTATIONS))
        assert what.images == (raw.images / name,)
        assert missing.images == (raw.images / "COCO_train2014_000000000002.jpg",)

    @pytest.mark.parametrize(
        ("subtype", "split"), [("train2014", "train"), ("val2014", "validation"), ("test-dev2015", "test"), ("other", None)]
    )
    def test_the_data_subtype_gives_the_split(self, raw: RawFiles, subtype: str, split: str | None) -> None:
        assert {sample.split for sample in read(raw.vqav2(self.QUESTIONS, self.ANNOTATIONS, subtype))} == {split}

    def test_unpaired_entries_are_rejected(self, raw: RawFiles) -> None:
        questions = [
            {"question_id": 1, "image_id": 1, "question": "Without annotation?"},
            {"question_id": 2, "image_id": 1, "question": "With another picture's annotation?"},
            {"question_id": 3, "image_id": 1, "question": "With two annotations?"},
            {"question_id": 4, "image_id": 1, "question": "Fine?"},
            {"question_id": 4, "image_id": 1, "question": "The same id?"},
        ]
        annotations = [{"question_id": i, "image_id": 2 if i == 2 else 1, "answers": vqa_answers("yes")} for i in (2, 3, 3, 4)]
        unpaired = [(f"question {i}", DropReason.UNPAIRED) for i in (0, 1, 2, 4)]
        assert rejected(raw.vqav2(questions, [*annotations, "nonsense", {"image_id": 1}])) == unpaired

    def test_a_data_subtype_that_is_not_a_name_is_an_error(self, raw: RawFiles) -> None:
        with pytest.raises(TesseraError, match=r"data_subtype is '\.\./x'"):
            read(raw.vqav2(self.QUESTIONS, self.ANNOTATIONS, "../x"))


class TestVqaMetadata:
    def test_a_list_of_questions_is_read(self, raw: RawFiles) -> None:
        [sample] = read(
            raw.vqa_metadata([{"id": 5, "question": "what brand?", "answers": ["dakota", "nous", "dakota"], "image_file": "a.jpg"}])
        )
        assert (sample.key, sample.targets, sample.answers) == ("5", ("dakota",), ("dakota", "nous", "dakota"))
        assert (sample.task, sample.split, sample.images) == ("vqa", None, (raw.images / "a.jpg",))

    def test_the_official_textvqa_file_is_read(self, raw: RawFiles) -> None:
        answers = {"answers": ["a"] * 10, "set_name": "val", "image_classes": []}
        entry = {"question_id": 34602, "question": "what?", "image_id": "003a8ae2", **answers}
        [sample] = read(raw.vqa_metadata({"dataset_type": "val", "data": [entry], "dataset_name": "textvqa"}))
        assert (sample.key, sample.split, sample.images) == ("34602", "validation", (raw.images / "003a8ae2.jpg",))

    def test_questions_without_answers_are_rejected(self, raw: RawFiles) -> None:
        records = [{"id": 0, "question": "?", "image_file": "a.jpg"}, {"id": 1, "question": " ", "answers": ["x"], "image_file": "a.jpg"}]
        assert rejected(raw.vqa_metadata(records)) == [("record 0", DropReason.EMPTY), ("record 1", DropReason.EMPTY)]


class TestMessages:
    ROWS = (
        {
            "messages": chat_messages(("system", "Be brief."), ("user", "<image> <image>?"), ("assistant", "No.")),
            "images": ["a.jpg", "b.jpg"],
        },
        {"messages": chat_messages(("user", "Hello"), ("assistant", "Hi."))},
        {"messages": chat_messages(("user", "<image>?"), ("assistant", "Yes.")), "images": "a.jpg", "split": "test"},
    )

    def test_jsonl_rows_may_have_any_number_of_images(self, raw: RawFiles) -> None:
        two, none, one = read(raw.messages(list(self.ROWS)))
        assert two.images == (raw.images / "a.jpg", raw.images / "b.jpg")
        assert two.messages == (Message("system", "Be brief."), Message("user", "<image> <image>?"))
        assert (none.images, none.split) == ((), None)
        assert (one.images, one.split) == ((raw.images / "a.jpg",), "test")

    def test_parquet_rows_may_embed_images(self, raw: RawFiles) -> None:
        data = (raw.images / raw.image("a.png")).read_bytes()
        path = raw.folder / "rows.parquet"
        turns = [chat_messages(("user", text), ("assistant", "Yes.")) for text in ("<image>?", "<image>?", "Hello")]
        images = [[{"bytes": data, "path": "x.png"}], [{"bytes": None, "path": "a.png"}], []]
        pq.write_table(pa.table({"messages": turns, "images": images, "other": [1, 2, 3]}), path)
        embedded, named, none = read(MessagesSource(format="messages", path=path, images=raw.images))
        assert (embedded.images, named.images, none.images) == ((data,), (raw.images / "a.png",), ())

    def test_each_content_part_begins_on_a_new_line_and_turns_have_no_blank_space_around_them(self, raw: RawFiles) -> None:
        parts = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": " what?"}]
        turns = chat_messages(
            ("system", "Be brief.\n"), ("user", parts), ("assistant", "A cat."), ("user", " Sure?\n"), ("assistant", "Yes.")
        )
        [sample] = read(raw.messages([{"messages": turns, "images": ["a.jpg"]}]))
        assert [turn.content for turn in sample.messages] == ["Be brief.", "Look:\n<image>\nwhat?", "A cat.", "Sure?"]

    def test_blank_lines_are_skipped_and_locations_are_line_numbers(self, raw: RawFiles) -> None:
        source = raw.messages(["nonsense"])
        Path(source.annotation_files[0]).write_text(f"\n{json.dumps(self.ROWS[1])}\n\n[]\n")
        assert rejected(source) == [("line 4", DropReason.NOT_AN_OBJECT)]

    def test_a_line_that_is_not_json_is_an_error_with_its_position(self, raw: RawFiles) -> None:
        source = raw.messages(list(self.ROWS))
        Path(source.annotation_files[0]).write_text(f"{json.dumps(self.ROWS[1])}\n" + '{"messages": oops}\n')
        with pytest.raises(TesseraError, match=r"rows\.jsonl: not valid JSON at line 2 column 14"):
            read(source)

    def test_files_of_another_kind_are_an_error(self, raw: RawFiles) -> None:
        path = raw.folder / "rows.parquet"
        path.write_bytes(b"PAR1 nonsense")
        with pytest.raises(TesseraError, match=r"rows\.parquet: not a Parquet file"):
            read(MessagesSource(format="messages", path=path))
        pq.write_table(pa.table({"text": ["x"]}), path)
        with pytest.raises(TesseraError, match='expected a column "messages", found text'):
            read(MessagesSource(format="messages", path=path))


RECORDS: dict[str, Any] = {
    "ai_challenger": {"image_id": "a.jpg", "caption": ["图", "猫"]},
    "llava": {"id": "1", **conversation("a.jpg", "What?", "A cat.")},
    "coco_captions": {"images": {"id": 1, "file_name": "a.jpg"}, "annotations": {"image_id": 1, "caption": "A cat."}},
    "vqav2": {
        "questions": {"question_id": 1, "image_id": 1, "question": "?"},
        "annotations": {"question_id": 1, "image_id": 1, "answers": vqa_answers("x", "y")},
    },
    "vqa_metadata": {"id": 1, "question": "?", "answers": ["x", "y"], "image_file": "a.jpg"},
    "messages": {
        "messages": chat_messages(("user", [{"type": "image"}, {"type": "text", "text": "?"}]), ("assistant", "x")),
        "images": ["a.jpg"],
        "split": "train",
    },
}
PAIRED = ("coco_captions", "vqav2")


def make_source(raw: RawFiles, kind: str, records: list[Any], **settings: Any) -> Source:
    if kind == "coco_captions":
        return raw.coco_captions([record["images"] for record in records], [record["annotations"] for record in records], **settings)
    if kind == "vqav2":
        return raw.vqav2([record["questions"] for record in records], [record["annotations"] for record in records], **settings)
    source: Source = getattr(raw, kind)(records, **settings)
    return source


def record_with_id(kind: str, number: int) -> Any:
    """The valid record of a format; in formats that join by id, with the id `number`."""
    names = {"coco_captions": ("id", "image_id"), "vqav2": ("question_id",)}.get(kind)
    if names is None:
        return RECORDS[kind]
    return {part: {**entry, **{name: number for name in names if name in entry}} for part, entry in RECORDS[kind].items()}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_limit_reads_the_first_records(raw: RawFiles, kind: str) -> None:
    all_keys = [sample.key for sample in read(make_source(raw, kind, [record_with_id(kind, i) for i in range(5)]))]
    assert len(all_keys) == 5
    assert [sample.key for sample in read(make_source(raw, kind, [record_with_id(kind, i) for i in range(5)], limit=2))] == all_keys[:2]


@pytest.mark.parametrize("kind", RECORDS)
def test_the_error_for_a_missing_annotation_file_names_it(raw: RawFiles, kind: str) -> None:
    source = make_source(raw, kind, [record_with_id(kind, i) for i in range(5)])
    for path in source.annotation_files:
        Path(path).unlink()
    with pytest.raises(TesseraError, match="cannot be read"):
        list(sources.read(source, DataConfig()))


def test_a_folder_instead_of_a_file_is_an_error(tmp_path: Path) -> None:
    for source in (LlavaSource(format="llava", annotations=tmp_path), VqaMetadataSource(format="vqa_metadata", annotations=tmp_path)):
        with pytest.raises(TesseraError, match="cannot be read"):
            list(sources.read(source, DataConfig()))


MALFORMED: list[Any] = [None, 1, 1.5, True, "", "x", "\ud800", "a\0b", "../..", 10**30, [], {}, [None], [[]], {"a": 1}, "<image>"]


def key_paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, child in children for path in key_paths(child, (*prefix, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@pytest.mark.parametrize("kind", RECORDS)
def test_no_malformed_record_stops_a_merge(raw: RawFiles, kind: str) -> None:
    raw.image("a.jpg")
    raw.image("COCO_train2014_000000000001.jpg")
    # Formats with two lists: a malformed entry is in one of them.
    tops = [(part,) for part in RECORDS[kind]] if kind in PAIRED else [()]
    paths = [path for path in key_paths(RECORDS[kind]) if any(path[: len(top)] == top for top in tops) and (path or tops == [()])]
    malformed = [
        replaced(record_with_id(kind, 1000 + i), path, value) for i, (path, value) in enumerate(itertools.product(paths, MALFORMED))
    ]
    valid = raw.messages([RECORDS["messages"]] * 2) if kind != "messages" else raw.llava([RECORDS["llava"]] * 2)
    report = raw.merge(make_source(raw, kind, malformed), valid)
    assert report.sources[1].kept == 2
    assert report.sources[0].read == report.sources[0].kept + sum(report.sources[0].dropped.values())
    assert report.sources[0].read >= len(malformed)
    assert report.sources[0].kept > 0
