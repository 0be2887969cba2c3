"""Rows of chat datasets in the forms that other tools write: other keys, images named inside the parts of a turn, other containers."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason
from dataset.source_config import MessagesSource, Source
from dataset.sources.record import RawSample, RejectedRecord
from errors import TesseraError
from tests.dataset.raw_files import RawFiles

ANSWER = {"role": "assistant", "content": "A cat."}


def read(source: Source) -> list[RawSample]:
    items = list(sources.read(source, DataConfig()))
    assert all(isinstance(item, RawSample) for item in items), items
    return [item for item in items if isinstance(item, RawSample)]


def rejected(source: Source) -> list[tuple[DropReason, str]]:
    return [(item.reason, item.detail) for item in sources.read(source, DataConfig()) if isinstance(item, RejectedRecord)]


def asked(*parts: Any, **row: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **row}


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]},
        {"images": ["a.jpg"], "conversations": [{"role": "user", "content": "<image>\nWhat?"}, ANSWER]},
        {"image": {"path": "a.jpg"}, "messages": [{"role": "user", "content": "<image>\nWhat?"}, ANSWER]},
        asked({"type": "image"}, TEXT, images=["a.jpg"]),
        asked({"type": "image", "image": "a.jpg"}, TEXT),
        asked({"type": "image", "path": "a.jpg"}, TEXT),
        asked({"type": "image", "url": "a.jpg"}, TEXT),
        asked({"image": "a.jpg"}, {"text": "What?"}),
        asked({"type": "image_url", "image_url": {"url": "a.jpg"}}, TEXT),
        asked({"type": "image_url", "image_url": "a.jpg"}, TEXT),
        asked({"type": "image", "image": "a.jpg"}, TEXT, images=["a.jpg"]),
        asked({"type": "image", "image": {"bytes": None, "path": None}}, TEXT, images=["a.jpg"]),
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_every_form_of_a_question_about_one_image_is_the_same_sample(raw: RawFiles, row: dict[str, Any]) -> None:
    [sample] = read(raw.messages([row]))
    assert (sample.images, sample.messages[0].content, sample.targets) == ((raw.images / "a.jpg",), "<image>\nWhat?", ("A cat.",))


def test_images_of_parts_and_of_the_row_are_taken_in_the_order_of_the_placeholders(raw: RawFiles) -> None:
    first = {"role": "user", "content": [{"type": "image"}, {"type": "image", "path": "part.jpg"}, {"type": "image"}, TEXT]}
    row = {"messages": [first, ANSWER, {"role": "user", "content": "<image> and now?"}, ANSWER], "images": ["1.jpg", "2.jpg", "3.jpg"]}
    [sample] = read(raw.messages([row]))
    assert [path.name for path in sample.images if isinstance(path, Path)] == ["1.jpg", "part.jpg", "2.jpg", "3.jpg"]


def test_too_few_images_in_a_row_are_counted(raw: RawFiles) -> None:
    report = raw.merge(raw.messages([asked({"type": "image"}, {"type": "image"}, TEXT, images=["a.jpg"]), asked(TEXT)]))
    assert report.sources[0].dropped == {"marks and pictures disagree": 1}


def test_an_image_may_be_a_data_url(raw: RawFiles) -> None:
    data = (raw.images / raw.image("a.png")).read_bytes()
    url = "data:image/png;base64," + base64.encodebytes(data).decode()
    [sample] = read(raw.messages([asked({"type": "image_url", "image_url": {"url": url, "detail": "low"}}, TEXT)]))
    assert sample.images == (data,)
    for broken in ("data:image/png;base64,a", "data:image/png,abc"):
        [(reason, detail)] = rejected(raw.messages([asked({"type": "image", "url": broken}, TEXT)]))
        assert reason == DropReason.UNDECODABLE
        assert "cannot be decoded" in detail


def test_a_web_address_is_refused_with_the_reason(raw: RawFiles) -> None:
    url = "https://example.org/a.jpg"
    [(reason, detail)] = rejected(raw.messages([asked({"type": "image_url", "image_url": {"url": url}}, TEXT)]))
    assert (reason, detail) == (
        DropReason.MISSING_FILE,
        "https://example.org/a.jpg is a web address: download the images first, and give the names of the files",
    )


def test_a_list_in_a_json_file_is_read_too(raw: RawFiles) -> None:
    rows = [asked({"type": "image", "path": "a.jpg"}, TEXT), {"messages": [{"role": "user", "content": "Hello"}, ANSWER]}]
    named, none = read(MessagesSource(format="messages", path=raw.write("rows.json", rows), images=raw.images))
    assert (named.images, none.images, str(none.location)) == ((raw.images / "a.jpg",), (), "record 1")


def test_parquet_rows_may_have_conversations_and_one_embedded_image(raw: RawFiles) -> None:
    data = (raw.images / raw.image("a.png")).read_bytes()
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A cat."}]
    pq.write_table(pa.table({"conversations": [turns], "image": [{"bytes": data, "path": "x.png"}]}), raw.folder / "rows.parquet")
    [sample] = read(MessagesSource(format="messages", path=raw.folder / "rows.parquet"))
    assert (sample.images, sample.targets) == ((data,), ("A cat.",))


def test_a_conversation_that_the_assistant_opens_is_refused_with_that_reason(raw: RawFiles) -> None:
    turns = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "What?"}, ANSWER]
    report = raw.merge(raw.messages([{"messages": turns}, asked(TEXT)]))
    [example] = report.sources[0].examples["turns out of order"]
    assert example.endswith("line 1: the assistant opens the conversation; expected the user's turn first")


def test_a_number_of_5000_digits_in_a_line_does_not_stop_the_file(raw: RawFiles) -> None:
    source = raw.messages([asked(TEXT)] * 3)
    first, _, third = Path(source.annotation_files[0]).read_text(encoding="utf-8").splitlines()
    nested = "[" * 30_000 + "]" * 30_000
    Path(source.annotation_files[0]).write_text(f'{first[:-1]}, "id": {"7" * 5000}}}\n{nested}\n{third}\n', encoding="utf-8")
    assert [str(item.location) for item in sources.read(source, DataConfig()) if isinstance(item, RawSample)] == ["line 1", "line 3"]
    assert rejected(source) == [(DropReason.NOT_AN_OBJECT, "expected an object, found a value with too many levels")]


@pytest.mark.parametrize(
    "splits",
    [
        pa.array([2**62, 0], pa.timestamp("us")),
        pa.array([2**62, 0], pa.duration("s")),
        pa.array([1, 2], pa.timestamp("s", tz="Nowhere/Nothing")),
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array([2**31 - 1, 0], pa.date32()),
    ],
    ids=lambda column: str(column.type),
)
def test_times_in_the_place_of_a_split_are_counted(raw: RawFiles, splits: pa.Array) -> None:
    rows = [[{"role": "user", "content": "?"}, ANSWER]] * 2
    pq.write_table(pa.table({"messages": rows, "split": splits}), raw.folder / "rows.parquet")
    report = raw.merge(MessagesSource(format="messages", path=raw.folder / "rows.parquet"), raw.llava([turn_record()]))
    assert report.sources[0].dropped == {"missing field": 2}
    assert report.sources[1].kept == 1


def turn_record() -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]}


def test_gbk_lines_are_named_as_gbk(raw: RawFiles) -> None:
    source = raw.messages([])
    line = json.dumps(
        {"messages": [{"role": "user", "content": "图中有什么？"}, {"role": "assistant", "content": "一只猫"}]}, ensure_ascii=False
    )
    Path(source.annotation_files[0]).write_bytes(line.encode("gbk") + b"\n")
    with pytest.raises(TesseraError, match=r"bad encoding .*; it is GBK \(图中有什么？一只\): convert the file to UTF-8"):
        raw.merge(source)
    Path(source.annotation_files[0]).write_bytes('{"messages": "一只猫和一只狗誠"}\n'.encode("gbk"))
    with pytest.raises(TesseraError, match=r"rows\.jsonl: not valid JSON at line 1 .*; it is GBK \(一只猫"):
        raw.merge(source)
