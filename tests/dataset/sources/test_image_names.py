"""Which names of images are read, and where they may lead."""

from pathlib import Path
from typing import Any

import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason, encoding_hint
from dataset.source_config import Source
from dataset.sources.record import RawSample, RejectedRecord
from tests.dataset.raw_files import RawFiles, conversation


def records_of_all_formats(raw: RawFiles, name: Any, **settings: Any) -> list[Source]:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": name}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "x"},
    ]
    return [
        raw.ai_challenger([{"image_id": name, "caption": ["图"]}], **settings),
        raw.llava([conversation(name, "?", "x")], **settings),
        raw.coco_captions([{"id": 1, "file_name": name}], [{"image_id": 1, "caption": "x"}], **settings),
        raw.vqa_metadata([{"question": "?", "answers": ["x"], "image_file": name}], **settings),
        raw.messages([{"messages": turns}], **settings),
    ]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "..\\secret.jpg", "/etc/secret.jpg", "file:///etc/s.jpg", "C:\\s.jpg"]
)
def test_a_name_that_leads_out_of_the_image_folder_is_refused_in_every_format(raw: RawFiles, name: str) -> None:
    for source in records_of_all_formats(raw, name):
        [item] = sources.read(source, DataConfig())
        assert isinstance(item, RejectedRecord), source.format
        assert item.reason == DropReason.OUTSIDE
        assert "allow_outside_images: true permits it" in item.detail


def test_an_image_id_that_leads_out_of_the_image_folder_is_refused(raw: RawFiles) -> None:
    [item] = sources.read(raw.vqa_metadata([{"question": "?", "answers": ["x"], "image_id": "../secret"}]), DataConfig())
    assert isinstance(item, RejectedRecord)
    assert item.reason == DropReason.OUTSIDE


def test_the_source_may_allow_names_that_lead_out_of_the_image_folder(raw: RawFiles) -> None:
    for name, path in (("../secret.jpg", raw.images / "../secret.jpg"), ("/etc/secret.jpg", Path("/etc/secret.jpg"))):
        for source in records_of_all_formats(raw, name, allow_outside_images=True):
            [item] = sources.read(source, DataConfig())
            assert isinstance(item, RawSample), source.format
            assert item.images == (path,)


def test_a_refused_image_is_never_opened_and_the_merge_says_what_allows_it(raw: RawFiles) -> None:
    raw.image("a.jpg")
    (raw.folder / "secret.jpg").write_bytes((raw.images / raw.image("b.jpg", shade=3)).read_bytes())
    report = raw.merge(raw.llava([conversation("../secret.jpg", "?", "x"), conversation("a.jpg", "?", "y")]))
    assert report.sources[0].dropped == {"image outside its folder": 1}
    assert report.images == report.image_files.checked == 1
    assert raw.merge(raw.llava([conversation("../secret.jpg", "?", "x")], allow_outside_images=True)).images == 1


def test_backslashes_separate_folders_as_windows_writes_them(raw: RawFiles) -> None:
    (raw.images / "train" / "cats").mkdir(parents=True)
    raw.image("train/cats/a.jpg")
    for source in records_of_all_formats(raw, "train\\cats\\a.jpg"):
        [item] = sources.read(source, DataConfig())
        assert isinstance(item, RawSample), source.format
        assert item.images == (raw.images / "train/cats/a.jpg",)


def test_a_file_whose_own_name_has_a_backslash_is_found(raw: RawFiles) -> None:
    raw.image("a\\b.jpg")
    [item] = sources.read(raw.llava([conversation("a\\b.jpg", "?", "x")]), DataConfig())
    assert isinstance(item, RawSample)
    assert item.images == (raw.images / "a\\b.jpg",)


def test_vizwiz_records_are_read(raw: RawFiles) -> None:
    answers = [{"answer": "soup", "answer_confidence": "yes"}, {"answer": "unanswerable", "answer_confidence": "no"}]
    record = {"image": "VizWiz_train_00000000.jpg", "question": "What is it?", "answers": answers, "answer_type": "other", "answerable": 1}
    [item] = sources.read(raw.vqa_metadata([record]), DataConfig())
    assert isinstance(item, RawSample)
    assert (item.images, item.answers) == ((raw.images / "VizWiz_train_00000000.jpg",), ("soup", "unanswerable"))


@pytest.mark.parametrize(
    ("answers", "expected"), [([2, 3, 2], ("2", "3", "2")), (7, ("7",)), ([2.0, "two"], ("2", "two")), ([{"answer": 4}], ("4",))]
)
def test_whole_numbers_are_answers(raw: RawFiles, answers: Any, expected: tuple[str, ...]) -> None:
    [item] = sources.read(raw.vqa_metadata([{"question": "How many?", "answers": answers, "image_file": "a.jpg"}]), DataConfig())
    assert isinstance(item, RawSample)
    assert item.answers == expected


def test_a_whole_number_may_end_a_conversation(raw: RawFiles) -> None:
    record = {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": 3}]}
    [item] = sources.read(raw.llava([record]), DataConfig())
    assert isinstance(item, RawSample)
    assert item.targets == ("3",)


@pytest.mark.parametrize(
    ("data", "is_gbk"),
    [
        ("一只猫坐在垫子上".encode("gbk"), True),
        ('["这幅图像中有什么？", "caption"]'.encode("gb18030"), True),
        ("café à la crème".encode("latin-1"), False),
        ("Straße, Größe, Übung".encode("latin-1"), False),
        ("кошка на коврике".encode("cp1251"), False),
        ("一只猫坐在垫子上".encode() + b"\xff", False),
        ("一只猫坐".encode()[:-1], False),
        (b"caf\xe9", False),
    ],
)
def test_only_chinese_text_in_gbk_is_taken_for_gbk(data: bytes, is_gbk: bool) -> None:
    assert bool(encoding_hint(data.decode("utf-8", "surrogateescape"))) == is_gbk


@pytest.mark.parametrize("form", ["GBK", "NFD"])
def test_a_missing_file_whose_name_is_there_in_other_bytes_is_named_as_such(raw: RawFiles, form: str) -> None:
    name = {"GBK": "照片.jpg", "NFD": "caf\u00e9.jpg"}[form]
    on_disk = {"GBK": "照片.jpg".encode("gbk"), "NFD": "cafe\u0301.jpg".encode()}[form]
    raw.image("good.jpg")
    (raw.images / on_disk.decode("utf-8", "surrogateescape")).write_bytes((raw.images / "good.jpg").read_bytes())
    report = raw.merge(raw.llava([conversation(name, "?", "x"), conversation("good.jpg", "?", "y")]))
    [example] = report.sources[0].examples["missing file"]
    assert form in example
