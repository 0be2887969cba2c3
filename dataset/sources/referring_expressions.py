"""Referring expressions: texts that mean one region of an image, as RefCOCO, RefCOCO+ and RefCOCOg have them.

Two files. The expressions: [{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent", "sent_id"}]}], which is refs(unc).p or
refs(umd).p converted to JSON. The regions: COCO's instances.json, {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id",
"bbox": [x, y, width, height]}]}, in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dataset.bounding_box import BOX_PLACEHOLDER, RawBox, box_answer
from dataset.config import DataConfig
from dataset.record_validation import DropReason, InvalidRecordError
from dataset.remote_files import FilePath
from dataset.sample import detect_language, hash_to_index
from dataset.source_config import RefCocoSource, RegionQuestions
from dataset.sources.json_reader import JsonReader, read_array
from dataset.sources.record import (
    Parser,
    RawSample,
    RecordLocation,
    Records,
    image_path,
    image_question,
    parse_split_name,
    require_field,
    require_id,
    require_list,
    require_object,
)
from dataset.sources.record_boxes import parse_box
from errors import TesseraError

PICKLE_SUFFIXES = (".p", ".pkl", ".pickle")


def refcoco(source: RefCocoSource, config: DataConfig) -> tuple[Records, Parser]:
    """One sample for each expression, one for each region, or both (`samples`), in the order of the expressions' file.

    Raises TesseraError for a pickle, whose reading could run any code that stands in it.
    """
    refs, instances = source.annotation_files
    for path in (refs, instances):
        if path.suffix in PICKLE_SUFFIXES:
            raise TesseraError(
                f"{path}: a pickle, which is not read since it may run code; convert it where you trust it: "
                "python -c \"import json, pickle; json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs.json', 'w'))\""
            )
    regions = _read_instances(instances)

    def parse(location: RecordLocation, record: dict[str, Any]) -> RawSample:
        ref = require_object(record["ref"])
        box, file_name = _region(source, regions, ref)
        expressions = [_expression(sentence) for sentence in require_list(ref.get("sentences"), "sentences")]
        if not expressions:
            raise InvalidRecordError(DropReason.EMPTY, '"sentences" is empty')
        key = str(ref["ref_id"]) if isinstance(ref.get("ref_id"), int | str) else location.key
        split, kind, number = parse_split_name(ref.get("split")), record["kind"], record["number"]
        if kind == "locate":
            asked, key = expressions[number], f"{key}-{number}"
            question = _question(source.locate_questions, asked, key, config.seed).replace("{expression}", asked)
            targets: tuple[str, ...] = (box_answer(asked),)
        else:
            key = f"{key}-box"
            question = _question(source.describe_questions, expressions[0], key, config.seed).replace("{box}", BOX_PLACEHOLDER)
            targets = tuple(dict.fromkeys(expressions))
        return RawSample(
            location, key, (image_path(source, file_name),), "grounding" if kind == "locate" else "caption", (image_question(question),),
            targets, targets, split, boxes=(box,),
        )  # fmt: skip

    return _records(read_array(refs), source.samples), parse


def _records(refs: Iterator[Any], kinds: Sequence[Literal["locate", "describe"]]) -> Records:
    """The samples of each entry: {ref, kind, number of its sentence}. An entry without a list of sentences is one, which is rejected."""
    for index, ref in enumerate(refs):
        sentences = ref.get("sentences") if isinstance(ref, dict) else None
        count = len(sentences) if isinstance(sentences, list) and sentences else 1
        for kind in kinds:
            for number in range(count if kind == "locate" else 1):
                yield RecordLocation("ref", index), {"ref": ref, "kind": kind, "number": number}


def _expression(sentence: Any) -> str:
    """The expression of an entry of `sentences`. A box placeholder in it would be one without a box."""
    text = require_field(require_object(sentence), "sent", "raw")
    if not isinstance(text, str) or not (stripped := " ".join(text.replace(BOX_PLACEHOLDER, " ").split())):
        raise InvalidRecordError(DropReason.EMPTY, f"an expression is {text!r:.100}")
    return stripped


def _question(questions: RegionQuestions, expression: str, key: str, seed: int) -> str:
    templates = questions.zh if detect_language(expression) == "zh" else questions.en
    return templates[hash_to_index(key, seed, 0, len(templates))]


@dataclass
class _Instances:
    """Content of an instances file: unparsed boxes and their images by annotation id, unparsed file names by image id."""

    boxes: dict[int | str, tuple[Any, Any]] = field(default_factory=dict)
    file_names: dict[int | str, Any] = field(default_factory=dict)


def _read_instances(path: FilePath) -> _Instances:
    content = _Instances()
    with JsonReader(path) as file:
        for key, entries in file.iter_members(("images", "annotations"), 'an object with the lists "images" and "annotations"'):
            if key not in ("images", "annotations"):
                continue
            for entry in entries:
                # Those without an id are nobody's: who refers to them is rejected as unpaired.
                if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
                    continue
                if key == "images":
                    content.file_names[entry["id"]] = entry.get("file_name")
                else:
                    content.boxes[entry["id"]] = entry.get("image_id"), entry.get("bbox")
    return content


def _region(source: RefCocoSource, regions: _Instances, ref: dict[str, Any]) -> tuple[RawBox, Any]:
    """The box of an entry, and the file name of its image."""
    annotation_id, image_id = require_id(ref, "ann_id"), require_id(ref, "image_id")
    if annotation_id not in regions.boxes:
        raise InvalidRecordError(DropReason.UNPAIRED, f"no annotation has the id {annotation_id}")
    image_of_box, corners = regions.boxes[annotation_id]
    if image_of_box != image_id:
        detail = f"the expression refers to image {image_id}, its annotation {annotation_id} to image {image_of_box}"
        raise InvalidRecordError(DropReason.UNPAIRED, detail)
    if image_id not in regions.file_names:
        raise InvalidRecordError(DropReason.UNPAIRED, f"no image has the id {image_id}")
    left, top, width, height = parse_box(corners, "real").corners
    box = parse_box([left, top, left + width, top + height], "real", is_stored=source.bbox_rotation == "stored")
    return box, regions.file_names[image_id]
