"""Files of referring expressions, and what is dropped of them."""

from pathlib import Path
from typing import Any

import pytest

from dataset.record_validation import DropReason
from dataset.source_config import RefCocoSource, RegionQuestions
from errors import TesseraError
from tests.dataset.raw_files import RawFiles

ANNOTATIONS = [
    {"id": 7, "image_id": 1, "bbox": [10, 5, 20, 10], "category_id": 3},
    {"id": 8, "image_id": 1, "bbox": [50, 30, 50, 10]},
    {"id": 9, "image_id": 2, "bbox": [0, 0, 10, 10]},
]


def ref(ref_id: int, ann_id: int, *sentences: str, image_id: int = 1, **more: Any) -> dict[str, Any]:
    """An entry of the file of expressions."""
    written = [{"sent_id": i, "sent": text, "raw": text.upper()} for i, text in enumerate(sentences)]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": "train", "sentences": written, **more}


def refcoco(raw: RawFiles, refs: list[Any], annotations: Any = ANNOTATIONS, **settings: Any) -> RefCocoSource:
    """A source with one image, 100 x 50 pixels, that has the id 1."""
    raw.image("a.png", size=(100, 50))
    instances = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations, "categories": []}
    return RefCocoSource(
        format="refcoco", refs=raw.write("refs.json", refs), instances=raw.write("instances.json", instances), images=raw.images, **settings
    )


def test_each_expression_is_a_question_for_its_box(raw: RawFiles) -> None:
    questions = RegionQuestions(en=("Where is {expression}?",), zh=("{expression}在哪里？",))
    source = refcoco(raw, [ref(70, 7, "the red one", "左边的圆形"), ref(71, 8, "last")], locate_questions=questions)
    assert raw.merge(source).sources[0].kept == 3
    english, chinese, last = raw.samples()
    assert english.sample_id == "refcoco/70-0"
    assert [message.content for message in english.messages] == ["<image>\nWhere is the red one?"]
    assert english.targets == english.answers == ('{"bbox_2d": [100, 100, 300, 300], "label": "the red one"}',)
    assert (english.task, english.language, english.split) == ("grounding", "en", "train")
    assert tuple(english.regions[0].box) == (100, 100, 300, 300)
    assert chinese.messages[0].content == "<image>\n左边的圆形在哪里？"
    assert chinese.language == "zh"
    assert chinese.targets == ('{"bbox_2d": [100, 100, 300, 300], "label": "左边的圆形"}',)
    assert last.targets == ('{"bbox_2d": [500, 600, 1000, 800], "label": "last"}',)


def test_each_region_is_a_question_for_its_expressions(raw: RawFiles) -> None:
    questions = RegionQuestions(en=("What is in {box}?",), zh=("{box}里是什么？",))
    raw.merge(refcoco(raw, [ref(70, 7, "the red one", "red", "red")], samples=("describe",), describe_questions=questions))
    [sample] = raw.samples()
    assert (sample.sample_id, sample.task) == ("refcoco/70-box", "caption")
    assert sample.messages[0].content == "<image>\nWhat is in [100, 100, 300, 300]?"
    assert sample.targets == sample.answers == ("the red one", "red")


def test_both_kinds_of_samples_can_be_made_of_one_file(raw: RawFiles) -> None:
    raw.merge(refcoco(raw, [ref(70, 7, "one", "two")], samples=("locate", "describe")))
    assert [sample.sample_id for sample in raw.samples()] == ["refcoco/70-0", "refcoco/70-1", "refcoco/70-box"]


@pytest.mark.parametrize(
    ("entry", "annotations", "reason", "detail"),
    [
        (ref(1, 5, "x"), ANNOTATIONS, DropReason.UNPAIRED, "no annotation has the id 5"),
        (ref(1, 9, "x"), ANNOTATIONS, DropReason.UNPAIRED, "its annotation 9 to image 2"),
        (ref(1, 9, "x", image_id=2), ANNOTATIONS, DropReason.UNPAIRED, "no image has the id 2"),
        (ref(1, 7), ANNOTATIONS, DropReason.EMPTY, "sentences"),
        (ref(1, 7, " "), ANNOTATIONS, DropReason.EMPTY, "expression"),
        ({"ref_id": 1}, ANNOTATIONS, DropReason.MISSING_FIELD, "ann_id"),
        (ref(1, 7, "x", sentences="x"), ANNOTATIONS, DropReason.MISSING_FIELD, "sentences"),
        ([], ANNOTATIONS, DropReason.NOT_AN_OBJECT, "list"),
        (ref(1, 7, "x"), [{"id": 7, "image_id": 1, "bbox": [1, 2, 3]}], DropReason.BOX, "expected four numbers"),
        (ref(1, 7, "x"), [{"id": 7, "image_id": 1, "bbox": [1, 2, "3", 4]}], DropReason.BOX, "expected four numbers"),
        (ref(1, 7, "x"), [{"id": 7, "image_id": 1, "bbox": [10, 5, -20, 10]}], DropReason.BOX, "corners exchanged"),
        (ref(1, 7, "x"), [{"id": 7, "image_id": 1, "bbox": [90, 5, 20, 10]}], DropReason.BOX, "outside its image of 100 x 50 pixels"),
    ],
)
def test_an_entry_that_cannot_be_used_is_dropped_with_its_reason(
    raw: RawFiles, entry: Any, annotations: Any, reason: DropReason, detail: str
) -> None:
    good = {"id": 8, "image_id": 1, "bbox": [50, 30, 10, 10]}
    report = raw.merge(refcoco(raw, [ref(2, 8, "good"), entry], [*(a for a in annotations if a["id"] != 8), good]))
    assert report.sources[0].dropped == {reason: 1}
    [example] = report.sources[0].examples[reason]
    assert detail in example
    assert [sample.sample_id for sample in raw.samples()] == ["refcoco/2-0"]


def test_a_pickle_is_never_read(raw: RawFiles, tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    source = refcoco(raw, [])
    with pytest.raises(TesseraError, match=r"refs\(unc\)\.p: a pickle, which is not read.*json\.dump"):
        raw.merge(RefCocoSource(format="refcoco", refs=path, instances=source.instances, images=raw.images))


@pytest.mark.parametrize("text", ["Where is it?", "{expression} and {expression}?"])
def test_a_question_names_its_expression_once(text: str) -> None:
    with pytest.raises(ValueError, match="expected once"):
        RefCocoSource(
            format="refcoco",
            refs=Path("a.json"),
            instances=Path("b.json"),
            locate_questions=RegionQuestions(en=(text,), zh=("{expression}",)),
        )
