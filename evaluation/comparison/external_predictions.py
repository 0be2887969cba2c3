"""Read stored answers: own predictions files, and files of other tools by their field names."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from answering.rerank.choose_answer import displayed_choice
from errors import TesseraError, UsageError
from evaluation import prediction_files
from evaluation.comparison.field_values import MISSING, answer_text, field_value, id_text, lookup, reference_texts
from evaluation.comparison.record_files import KEY, VALUE, Record, read_records

T = TypeVar("T")

_FIELD_KEYS = ("id", "answer", "references", "image", "question")
_QUESTION_FIELD = "question"
"""Field in which most tools write the question; it is compared with that of the merged data where a record has it."""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Field names in the records of another tool. A dotted path such as `doc.answers.0` descends into mappings and lists.

    references: None: they come from another file, or from the merged data, by id. image: name of the image; None without merged data: each
    question is a cluster of its own. question: its text; None: `question`, where the records have it.
    """

    id: str
    answer: str
    references: str | None = None
    image: str | None = None
    question: str | None = None

    @classmethod
    def parse(cls, pairs: Sequence[str], option: str = "--fields") -> "FieldNames | None":
        """Parse `id=question_id answer=text ...`; None for an empty list.

        Raises UsageError for an unknown key, one that is given twice, and without id or answer.
        """
        keys = [pair.partition("=")[0] for pair in pairs]
        given = dict(pair.partition("=")[::2] for pair in pairs)
        if unknown := [key for key, name in given.items() if key not in _FIELD_KEYS or not name]:
            raise UsageError(f"{option} {unknown[0]}: expected KEY=FIELD, where KEY is one of {', '.join(_FIELD_KEYS)}")
        if twice := [key for key in given if keys.count(key) > 1]:
            raise UsageError(f"{option}: {twice[0]} is given twice")
        if given and not {"id", "answer"} <= given.keys():
            raise UsageError(f"{option}: id=FIELD and answer=FIELD are required")
        return cls(**given) if given else None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison; several files are seeds of one configuration.

    choice: of predictions files; None: reranked if there is one, else first. fields: of other tools' files; None if all are predictions
    files. only_fields: read every file by `fields`, also one that is a predictions file.
    """

    paths: Sequence[Path]
    choice: str | None = None
    fields: FieldNames | None = None
    only_fields: bool = False


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers of one file, by question id; None where the system failed. References, image names and questions: if the file has them.

    name: path of the file, with the choice of a predictions file or the answer field of another. has_choices: whether it is a predictions
    file, which has choices.
    """

    name: str
    answers: dict[str, str | None]
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    has_choices: bool = False


def read_answer_file(path: Path, side: Side) -> AnswerFile:
    """Read a file of answers: a predictions file, or another tool's records by the fields of `side`.

    Raises:
        UsageError: the file cannot be opened, needs field names, or lacks the choice
        TesseraError: a record is invalid, or what stands in a field cannot be read
    """
    if not side.only_fields and _is_predictions_file(path, side.fields):
        return _from_predictions(path, side.choice)
    return _from_records(path, side.fields or _guessed_fields(path))


def _guessed_fields(path: Path) -> FieldNames:
    """The fields of a file for which none are named: those of an object that maps ids to answers. Raises UsageError for any other."""
    _, records = read_records(path, ())
    names = list(dict.fromkeys(chain.from_iterable(records)))
    if names == [KEY, VALUE]:
        return FieldNames(KEY, VALUE)
    raise UsageError(
        f"{path}: not a predictions file; name its fields, as in --fields id=question_id answer=text; it has {', '.join(names[:12])}"
    )


def _from_records(path: Path, fields: FieldNames) -> AnswerFile:
    optional = {"references": fields.references, "image": fields.image, "question": fields.question or _QUESTION_FIELD}
    source, records = read_records(path, (fields.id, fields.answer), [name for name in optional.values() if name is not None])
    places: dict[str, str] = {}
    answers: dict[str, str | None] = {}
    for number, record in enumerate(records, start=1):
        place = f"{source}, record {number}"
        name = id_text(field_value(record, fields.id, place), place)
        if name in answers:
            raise TesseraError(f"{place}: a second answer to {name}; the first is {places[name].rpartition(', ')[2]}")
        places[name] = place
        answers[name] = answer_text(field_value(record, fields.answer, place), f"{place}, {fields.answer}")
    by_id = dict(zip(answers, records, strict=True))
    usual_questions = {key: text for key, record in by_id.items() if isinstance(text := record.get(_QUESTION_FIELD), str)}
    return AnswerFile(
        f"{path} ({fields.answer})",
        answers,
        _column(by_id, fields.references, places, reference_texts),
        _column(by_id, fields.image, places, id_text),
        _column(by_id, fields.question, places, id_text) or usual_questions,
    )


def _column(records: dict[str, Record], name: str | None, places: dict[str, str], parse: Callable[[Any, str], T]) -> dict[str, T]:
    """Id -> value of an optional field; empty if no record has it. Raises TesseraError if only some have."""
    if name is None or all(lookup(record, name) is MISSING for record in records.values()):
        return {}
    return {key: parse(field_value(record, name, places[key]), f"{places[key]}, {name}") for key, record in records.items()}


def _is_predictions_file(path: Path, fields: FieldNames | None) -> bool:
    """Whether the first line is a prediction, or without `fields` has at least a sample id."""
    try:
        with path.open(encoding="utf-8") as file:
            record = json.loads(next((line for line in file if line.strip()), "null"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        # JSON over several lines, CSV, TSV, or another encoding: `read_records` reports what is wrong.
        return False
    required = {"sample_id"} if fields is None else {"sample_id", "candidates", "choices"}
    return isinstance(record, dict) and required <= record.keys()


def _from_predictions(path: Path, choice: str | None) -> AnswerFile:
    rows = prediction_files.read_predictions(path)
    predictions = {prediction.sample_id: prediction for prediction in rows}
    if len(predictions) < len(rows):
        ids = [prediction.sample_id for prediction in rows]
        raise TesseraError(f"{path}: a second answer to {next(name for name in ids if ids.count(name) > 1)}")
    present = set.intersection(*(set(prediction.choices or ()) for prediction in predictions.values()))
    if not present:
        raise UsageError(f"{path}: some lines have no choices; the evaluation that wrote it has not finished, run it again")
    selected = choice or displayed_choice(present)
    if selected not in present:
        raise UsageError(f"{path}: there is no choice '{selected}'; there are {', '.join(sorted(present))}")
    answers = {name: None if p.error is not None else (p.choices or {})[selected] for name, p in predictions.items()}
    questions = {name: prediction.question for name, prediction in predictions.items()}
    return AnswerFile(f"{path} ({selected})", answers, questions=questions, has_choices=True)
