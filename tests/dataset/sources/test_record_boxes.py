"""Boxes that records name: their coordinates, their placeholders, what is dropped, and that streams read them as merges do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataset.bounding_box import Box
from dataset.build.json_export import export_json
from dataset.loading.sample_store import SampleStore
from dataset.record_validation import DropReason
from dataset.sample import Sample
from dataset.source_config import Columns, MessagesSource, TableSource
from dataset.streaming.sample_reader import SampleReader
from dataset.streaming.source_records import Share
from dataset.streaming.stream_plan import stream_plan
from tests.dataset.raw_files import RawFiles

ANSWER = '{"bbox_2d": <bbox>, "label": "<ref-object>"}'
BOX = [10, 5, 30, 15]


def row(question: str, answer: str, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    """A row about one image."""
    turns = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": image if isinstance(image, list) else [image], **more}


def boxed(raw: RawFiles, *rows: dict[str, Any], **settings: Any) -> MessagesSource:
    """A source with the image a.png of 100 x 50 pixels, b.png of 200 x 200, and c.jpg, which is stored as 100 x 50 and shown upright as
    50 x 100."""
    raw.image("a.png", size=(100, 50))
    raw.image("b.png", 40, size=(200, 200))
    raw.image("c.jpg", 80, size=(100, 50), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    return raw.messages(list(rows), **settings)


def only_sample(raw: RawFiles, source: MessagesSource) -> Sample:
    """The only sample of a source, which a stream reads as the merge did."""
    assert raw.merge(source).sources[0].dropped == {}
    [merged] = raw.samples()
    [streamed] = streamed_samples(raw, source)
    assert (streamed.messages, streamed.targets, streamed.answers) == (merged.messages, merged.targets, merged.answers)
    assert (streamed.regions, streamed.task) == (merged.regions, merged.task)
    return merged


def streamed_samples(raw: RawFiles, source: MessagesSource) -> Iterator[Sample]:
    reader = SampleReader(stream_plan(raw.config(source), {}), Share())
    while (read := reader.read()) is not None:
        yield read.checked.sample


def test_names_and_boxes_of_objects_stand_where_their_placeholders_are(raw: RawFiles) -> None:
    objects = {"ref": ["the dog", "the dog"], "bbox": [BOX]}
    sample = only_sample(raw, boxed(raw, row("Where is <ref-object>?", ANSWER, objects=objects)))
    assert sample.messages[0].content == "<image>Where is the dog?"
    assert sample.targets == sample.answers == ('{"bbox_2d": [100, 100, 300, 300], "label": "the dog"}',)
    assert sample.task == "grounding"
    assert [(region.image, region.turn, region.box) for region in sample.regions] == [(0, 1, Box(100, 100, 300, 300))]


def test_a_box_in_the_question_makes_no_question_for_a_box(raw: RawFiles) -> None:
    sample = only_sample(raw, boxed(raw, row("What is in <bbox>?", "a dog at <bbox>", objects={"bbox": [BOX, BOX]})))
    assert sample.messages[0].content == "<image>What is in [100, 100, 300, 300]?"
    assert (sample.task, sample.targets) == ("conversation", ("a dog at [100, 100, 300, 300]",))


@pytest.mark.parametrize(
    ("settings", "objects"),
    [
        ({}, {"bbox": [BOX]}),
        ({}, {"bbox": [[0.1, 0.1, 0.3, 0.3]], "bbox_type": "norm1"}),
        ({"bbox_type": "norm1"}, {"bbox": [[0.1, 0.1, 0.3, 0.3]]}),
        ({"bbox_type": "norm1000"}, {"bbox": [[100, 100, 300, 300]]}),
        ({"bbox_type": "norm1"}, {"bbox": [BOX], "bbox_type": "real"}),
    ],
)
def test_coordinates_are_pixels_unless_source_or_record_says_otherwise(
    raw: RawFiles, settings: dict[str, Any], objects: dict[str, Any]
) -> None:
    sample = only_sample(raw, boxed(raw, row("Where?", '{"bbox_2d": <bbox>}', objects=objects), **settings))
    assert sample.regions[0].box == pytest.approx((100, 100, 300, 300))


@pytest.mark.parametrize(("rotation", "box"), [("upright", (200, 50, 600, 150)), ("stored", (700, 100, 900, 300))])
def test_boxes_of_a_rotated_image_refer_to_the_upright_or_the_stored_one(raw: RawFiles, rotation: Any, box: tuple[float, ...]) -> None:
    record = row("Where?", '{"bbox_2d": <bbox>}', "c.jpg", objects={"bbox": [BOX]})
    assert only_sample(raw, boxed(raw, record, bbox_rotation=rotation)).regions[0].box == pytest.approx(box)


def test_each_box_is_measured_in_its_own_image(raw: RawFiles) -> None:
    record = row("<image>Where?", "<bbox> and <bbox>", ["a.png", "b.png"], objects={"bbox": [BOX, BOX], "image_id": [0, 1]})
    sample = only_sample(raw, boxed(raw, record))
    assert sample.targets == ("[100, 100, 300, 300] and [50, 25, 150, 75]",)
    assert [region.image for region in sample.regions] == [0, 1]


@pytest.mark.parametrize(("kind", "text"), [("real", "[100, 100, 300, 300]"), ("norm1000", "[10, 5, 30, 15]"), (None, "[10,5, 30,15]")])
def test_boxes_in_the_texts_are_read_where_their_coordinates_are_stated(raw: RawFiles, kind: Any, text: str) -> None:
    sample = only_sample(raw, boxed(raw, row("Where? [1, 2, 3, 4]", 'It is {"bbox_2d": [10,5, 30,15]}', objects=None), bbox_in_text=kind))
    assert sample.targets == (f'It is {{"bbox_2d": {text}}}',)
    assert sample.messages[0].content == "<image>Where? [1, 2, 3, 4]"
    assert len(sample.regions) == (kind is not None)


@pytest.mark.parametrize("objects", [None, {"bbox": [BOX], "ref": ["x"]}, "anything"])
def test_texts_without_placeholders_stay_as_they_are(raw: RawFiles, objects: Any) -> None:
    assert only_sample(raw, boxed(raw, row("Where is <ref-object>?", "here", objects=objects))).targets == ("here",)
    # What only looks like one stays text, too.
    assert only_sample(raw, boxed(raw, row("What does <bbox> mean?", "a box"))).messages[0].content == "<image>What does <bbox> mean?"


@pytest.mark.parametrize(
    ("objects", "reason", "detail"),
    [
        ({"bbox": [[30, 5, 10, 15]]}, DropReason.BOX, "corners exchanged"),
        ({"bbox": [[10, 5, 130, 15]]}, DropReason.BOX, r"\[10.0, 5.0, 130.0, 15.0\] is outside its image of 100 x 50 pixels"),
        ({"bbox": [[1, 2]]}, DropReason.BOX, "expected four numbers"),
        ({"bbox": [[1, 2, True, 4]]}, DropReason.BOX, "expected four numbers"),
        ({"bbox": [BOX], "image_id": [1]}, DropReason.BOX, "of image 1, counted from 0, of 1"),
        ({"bbox": [BOX], "image_id": ["a"]}, DropReason.BOX, "objects.image_id"),
        ({"bbox": [BOX], "bbox_type": "cm"}, DropReason.BOX, "'cm'; expected real, norm1 or norm1000"),
        ({"bbox": [BOX, BOX]}, DropReason.BOX_COUNT, "1 <bbox> placeholders for 2 boxes"),
        ({"bbox": []}, DropReason.BOX_COUNT, "1 <bbox> placeholders for 0 boxes"),
        ({"bbox": [BOX], "ref": ["a", "b"]}, DropReason.BOX_COUNT, "1 <ref-object> placeholders for 2 names"),
        ({"bbox": [BOX], "ref": [1]}, DropReason.ANSWER_TYPE, "objects.ref"),
        ({"bbox": 7}, DropReason.MISSING_FIELD, "objects.bbox"),
        ([BOX], DropReason.NOT_AN_OBJECT, "list"),
    ],
)
def test_a_record_whose_boxes_cannot_be_used_is_dropped(raw: RawFiles, objects: Any, reason: DropReason, detail: str) -> None:
    objects = {"ref": ["it"], **objects} if isinstance(objects, dict) else objects
    source = boxed(raw, row("What?", "fine"), row("Where is <ref-object>?", '{"bbox_2d": <bbox>}', objects=objects))
    report = raw.merge(source).sources[0]
    assert report.dropped == {reason: 1}
    assert (report.read, report.kept) == (2, 1)
    [example] = report.examples[reason]
    assert re.search(detail, example)
    assert [sample.targets for sample in streamed_samples(raw, source)] == [("fine",)]


def test_a_table_of_conversations_may_have_objects(raw: RawFiles) -> None:
    raw.image("a.png", size=(100, 50))
    record = {**row("Where?", '{"bbox_2d": <bbox>}'), "boxes": {"bbox": [BOX]}}
    path = raw.write("rows.json", [record])
    raw.merge(TableSource(format="table", path=path, images=raw.images, columns=Columns(objects="boxes")))
    [sample] = raw.samples()
    assert (sample.task, sample.targets) == ("grounding", ('{"bbox_2d": [100, 100, 300, 300]}',))


def test_data_of_an_earlier_version_have_no_boxes(raw: RawFiles) -> None:
    raw.merge(boxed(raw, row("What?", "fine")))
    path = raw.merged / "samples.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["regions"]), path)
    assert [sample.regions for sample in SampleStore(raw.merged).samples()] == [()]


def test_the_json_export_names_the_boxes(raw: RawFiles) -> None:
    raw.merge(boxed(raw, row("Where?", '{"bbox_2d": <bbox>}', objects={"bbox": [BOX]}), row("What?", "fine")))
    export_json(raw.merged, raw.folder / "json")
    first, second = json.loads((raw.folder / "json" / "annotations.json").read_text(encoding="utf-8"))
    assert first["boxes"] == [{"image_id": 0, "bbox_2d": [100, 100, 300, 300]}]
    assert "boxes" not in second
