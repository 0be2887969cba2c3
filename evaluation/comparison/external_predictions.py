"""Read stored answers: own predictions files, and files of other tools by their field names."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answering.rerank.choose_answer import displayed_choice
from errors import TesseraError, UsageError
from evaluation import prediction_files

_FIELD_KEYS = ("id", "answer", "references", "image")


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Field names in the records of another tool. A dotted path such as `doc.answers.0` descends into mappings and lists.

    Args:
        id: question id
        answer: the answer
        references: reference answers; None: they come from the merged data, by id
        image: image name; None without merged data: each question is a cluster of its own
    """

    id: str
    answer: str
    references: str | None = None
    image: str | None = None

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> "FieldNames | None":
        """Parse `id=question_id answer=text ...`; None for an empty list. Raises UsageError for unknown keys and without id or answer."""
        given = dict(pair.partition("=")[::2] for pair in pairs)
        if unknown := [key for key, field in given.items() if key not in _FIELD_KEYS or not field]:
            raise UsageError(f"--fields {unknown[0]}: expected KEY=FIELD, where KEY is one of {', '.join(_FIELD_KEYS)}")
        if given and not {"id", "answer"} <= given.keys():
            raise UsageError("--fields: id=FIELD and answer=FIELD are required")
        return cls(**given) if given else None


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers of one file.

    Args:
        name: path of the file, with the choice of a predictions file
        answers: question id -> answer; None where the system failed
        references: question id -> reference answers, if the file has them
        images: question id -> image name, if the file has them
    """

    name: str
    answers: dict[str, str | None]
    references: dict[str, tuple[str, ...]]
    images: dict[str, str]


def read_answer_file(path: Path, choice: str | None, fields: FieldNames | None) -> AnswerFile:
    """Read a file of answers.

    Args:
        path: a predictions file, or another tool's JSON lines, JSON list (or object that contains one), CSV or TSV
        choice: choice of a predictions file; None: reranked if there is one, else first
        fields: field names of another tool's file

    Raises:
        UsageError: the file cannot be opened, needs `fields`, or lacks the choice
        TesseraError: a record is invalid
    """
    if _is_predictions_file(path, fields):
        return _from_predictions(path, choice)
    records = _read_records(path)
    if fields is None:
        names = ", ".join(list(records[0])[:12])
        raise UsageError(f"{path}: not a predictions file; name its fields, as in --fields id=question_id answer=text; it has {names}")
    answers: dict[str, str | None] = {}
    references: dict[str, tuple[str, ...]] = {}
    images: dict[str, str] = {}
    for record_number, record in enumerate(records, start=1):
        name = str(_field_value(record, fields.id, path, record_number))
        if name in answers:
            raise TesseraError(f"{path}, record {record_number}: a second answer to {name}")
        answer = _field_value(record, fields.answer, path, record_number)
        answers[name] = None if answer is None else str(answer[0] if isinstance(answer, list) and len(answer) == 1 else answer)
        if fields.references is not None:
            references[name] = _reference_texts(_field_value(record, fields.references, path, record_number))
        if fields.image is not None:
            images[name] = str(_field_value(record, fields.image, path, record_number))
    return AnswerFile(str(path), answers, references, images)


def _is_predictions_file(path: Path, fields: FieldNames | None) -> bool:
    """Whether the first line is a prediction, or without `fields` has at least a sample id."""
    try:
        with path.open(encoding="utf-8") as file:
            record = json.loads(next((line for line in file if line.strip()), "null"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        # JSON over several lines, CSV, TSV, or another encoding: `_read_records` reports what is wrong.
        return False
    required = {"sample_id"} if fields is None else {"sample_id", "candidates", "choices"}
    return isinstance(record, dict) and required <= record.keys()


def _from_predictions(path: Path, choice: str | None) -> AnswerFile:
    predictions = {prediction.sample_id: prediction for prediction in prediction_files.read_predictions(path)}
    present = set.intersection(*(set(prediction.choices or ()) for prediction in predictions.values()))
    if not present:
        raise UsageError(f"{path}: some lines have no choices; the evaluation that wrote it has not finished, run it again")
    selected = choice or displayed_choice(present)
    if selected not in present:
        raise UsageError(f"{path}: there is no choice '{selected}'; there are {', '.join(sorted(present))}")
    answers = {name: None if p.error is not None else (p.choices or {})[selected] for name, p in predictions.items()}
    return AnswerFile(f"{path} ({selected})", answers, {}, {})


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Records of JSON lines, JSON, CSV or TSV, by the file's suffix. Raises TesseraError if there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".csv", ".tsv"):
            data: Any = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        elif path.suffix.lower() == ".json":
            data = json.loads(text)
        else:
            data = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise TesseraError(f"{path}: expected JSON lines, JSON, CSV or TSV in UTF-8 ({' '.join(str(error).split())})") from error
    if isinstance(data, dict):
        data = next((value for value in data.values() if isinstance(value, list)), [])
    records = [record for record in data if isinstance(record, dict)]
    if not records or len(records) < len(data):
        raise TesseraError(f"{path}: expected a list of records with named fields, found {len(records)} of {len(data)}")
    return records


def _field_value(record: Any, field: str, path: Path, record_number: int) -> Any:
    """Value of a field, or of a dotted path of fields and list indices. Raises TesseraError if there is none."""
    if isinstance(record, dict) and field in record:
        return record[field]
    value = record
    for part in field.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise TesseraError(f"{path}, record {record_number}: there is no field '{field}'; it has {', '.join(map(str, record))}")
    return value


def _reference_texts(value: Any) -> tuple[str, ...]:
    """Reference answers from a string, a list of strings, VQA's list of {"answer": text}, or one of these lists as JSON in a table cell."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return (value,)
    items = value if isinstance(value, list) else [value]
    return tuple(str(item["answer"] if isinstance(item, dict) and "answer" in item else item) for item in items)
