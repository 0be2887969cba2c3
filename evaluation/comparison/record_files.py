"""Read the records of other tools' result files: JSON lines, JSON, CSV and TSV."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import TesseraError, UsageError
from evaluation.comparison.field_values import MISSING, lookup

Record = dict[str, Any]

KEY, VALUE = "key", "value"
"""Fields of the records of a JSON object that maps ids to answers or records: its key and, of an answer, its value."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BINARY_SUFFIXES = frozenset({".xlsx", ".xls", ".parquet", ".pkl", ".feather"})
_MAX_CELL_CHARS = 2**31 - 1
_MAX_LIST_DEPTH = 4


def read_records(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, list[Record]]:
    """The records of a file, and what to call them in messages: the path, for a list in an object with its name.

    Args:
        path: JSON lines, JSON, CSV or TSV, by the suffix; JSON and JSON lines are told apart by their content
        needed: fields that the records have; of several lists in an object, the one whose records have them is read
        optional: further fields; of a table, only the columns of needed and optional fields are kept, all if there are none

    Raises:
        UsageError: the file cannot be opened, or is of a format that is not read
        TesseraError: it is malformed, holds no records, or several lists with the fields
    """
    suffix = path.suffix.lower()
    if suffix in _BINARY_SUFFIXES:
        raise UsageError(f"{path}: files of this kind are not read; save the table as CSV, TSV or JSON lines")
    try:
        if suffix in _SEPARATORS:
            return str(path), _read_table(path, _SEPARATORS[suffix], needed, optional)
        return _choose_records(path, _read_json(path), needed)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise TesseraError(f"{path}: expected JSON lines, JSON, CSV or TSV in UTF-8 ({' '.join(str(error).split())})") from error


@contextmanager
def _large_cells() -> Iterator[None]:
    """Context in which cells of a table may have any length: some hold a whole image as base64."""
    before = csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_table(path: Path, separator: str, needed: Sequence[str], optional: Sequence[str]) -> list[Record]:
    columns = {name for field in (*needed, *optional) for name in (field, field.partition(".")[0])}
    records: list[Record] = []
    with path.open(encoding="utf-8-sig", newline="") as file, _large_cells():
        # Strict: else an unpaired quote swallows the rows after it.
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise TesseraError(f"{path}: the column '{twice[0]}' stands twice in the header")
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise TesseraError(f"{path}, line {reader.line_num}: the row has {len(row)} cells, the header {len(header)}")
                # Other columns, such as images, would only take memory.
                records.append({name: cell for name, cell in zip(header, row, strict=True) if not needed or name in columns})
        except csv.Error as error:
            raise TesseraError(f"{path}, line {reader.line_num}: not a row of a table ({error})") from error
    if not records:
        raise TesseraError(f"{path}: the table has no rows")
    if missing := [field for field in needed if not {field, field.partition(".")[0]} & set(header)]:
        raise TesseraError(f"{path}: there is no field '{missing[0]}'; it has {', '.join(header)}")
    return records


def _read_json(path: Path) -> Any:
    """The document of a JSON file, or the list of the values of JSON lines."""
    text = path.read_text(encoding="utf-8-sig")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) <= 1 or path.suffix.lower() == ".json":
        try:
            document = _parse(text, f"{path}")
        except ValueError:
            if len(lines) <= 1 or not _is_json(lines[0][1]):
                raise
        else:
            return [document] if _is_single_record(document, path) else document
    elif not _is_json(lines[0][1]):
        # A document over several lines under another suffix.
        return _parse(text, f"{path}")
    values = []
    for number, line in lines:
        try:
            values.append(_parse(line, f"{path}, line {number}"))
        except ValueError as error:
            raise TesseraError(f"{path}, line {number}: not a line of JSON ({error})") from error
    return values


def _is_single_record(document: Any, path: Path) -> bool:
    """Whether a document of one line is the only line of a JSON lines file."""
    return path.suffix.lower() != ".json" and isinstance(document, dict) and not any(_is_list_of_records(v) for v in document.values())


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parse(text: str, place: str) -> Any:
    """Parse JSON. Raises TesseraError where an object has a key twice, of which one would be lost."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            raise TesseraError(f"{place}: the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice in an object")
        return result

    return json.loads(text, object_pairs_hook=without_duplicates)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _choose_records(path: Path, document: Any, needed: Sequence[str]) -> tuple[str, list[Record]]:
    if isinstance(document, list):
        return str(path), _checked(path, document)
    if not isinstance(document, dict):
        raise TesseraError(f"{path}: expected a list of records with named fields, found {type(document).__name__}")
    lists = dict(_record_lists(document, ()))
    fitting = {name: records for name, records in lists.items() if _has_fields(records, needed)}
    mapped = _mapped_records(document)
    if not fitting and mapped and _has_fields(mapped, needed):
        return str(path), mapped
    if len(fitting) > 1 and needed:
        raise TesseraError(f"{path}: the lists {' and '.join(fitting)} both have records with {', '.join(needed)}; keep one of them")
    if not fitting:
        # Without lists, the object may map ids to answers or records, under other names than those that were given.
        found = [
            f"{name} ({', '.join(list(records[0])[:8])})" for name, records in (lists or {"the object itself": mapped}).items() if records
        ]
        raise TesseraError(
            f"{path}: expected a list of records with {' and '.join(needed) or 'named fields'}, found {'; '.join(found) or 'none'}"
        )
    name, records = next(iter(fitting.items()))
    return f"{path}, {name}", records


def _checked(path: Path, items: list[Any]) -> list[Record]:
    if not items:
        raise TesseraError(f"{path}: expected a list of records with named fields, found an empty one")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise TesseraError(f"{path}, record {number}: expected a record with named fields, found {str(item)[:60]!r}")
    return items


def _record_lists(value: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, list[Record]]]:
    """The lists of records in an object and in objects within it, with their dotted names."""
    for name, item in value.items():
        if _is_list_of_records(item):
            yield ".".join((*names, name)), item
        elif isinstance(item, dict) and len(names) < _MAX_LIST_DEPTH:
            yield from _record_lists(item, (*names, name))


def _mapped_records(document: dict[str, Any]) -> list[Record]:
    """Records of an object that maps ids to records, or to anything else: answers."""
    if document and all(isinstance(item, dict) for item in document.values()):
        return [{KEY: key, **item} for key, item in document.items()]
    return [{KEY: key, VALUE: item} for key, item in document.items()]


def _has_fields(records: list[Record], needed: Sequence[str]) -> bool:
    """Whether each field is in some record; one that lacks it is reported with its number when it is read."""
    return all(any(lookup(record, field) is not MISSING for record in records) for field in needed)
