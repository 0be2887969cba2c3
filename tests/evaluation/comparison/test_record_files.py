"""Records of JSON lines, JSON and tables, however another tool arranged them."""

import base64
import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from errors import TesseraError, UsageError
from evaluation.comparison.record_files import read_records

ROWS = [{"id": 1, "text": "red"}, {"id": 2, "text": "blue"}]
FIELDS = ("id", "text")


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("a.jsonl", ROWS),
        ("a.jsonl", json.dumps(ROWS, indent=1)),
        ("a.json", ROWS),
        ("a.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
        ("a.json", {"results": ROWS}),
        ("a.json", {"config": [{"name": "x"}], "logs": {"samples": ROWS}}),
        ("a.jsonl", {"config": [{"name": "x"}], "results": ROWS}),
        ("a.json", {"info": {}, "empty": [], "results": [{"id": 1, "error": "x"}, *ROWS]}),
    ],
)
def test_the_records_with_the_fields_are_found(tmp_path: Path, name: str, content: Any) -> None:
    _, records = read_records(write(tmp_path / name, content), FIELDS)
    assert records[-2:] == ROWS


def test_an_object_maps_ids_to_answers_or_to_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"7": "red", "8": ["blue"]})
    assert read_records(path, ("key", "value"))[1] == [{"key": "7", "value": "red"}, {"key": "8", "value": ["blue"]}]
    write(path, {"7": {"pred": "red"}, "8": {"pred": "blue"}})
    assert read_records(path, ("key", "pred"))[1] == [{"key": "7", "pred": "red"}, {"key": "8", "pred": "blue"}]


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_table_may_hold_whole_images(tmp_path: Path, separator: str) -> None:
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    before = csv.field_size_limit()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["id", "image", "text"])
        writer.writerows([i, base64.b64encode(random.Random(i).randbytes(150_000)).decode(), "red"] for i in range(3))
    assert read_records(path, FIELDS)[1] == [{"id": str(i), "text": "red"} for i in range(3)]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,text\n1,red\n2\n", r"a\.csv, line 3: the row has 1 cells, the header 2"),
        ("a.csv", "id,text\n1,red,blue\n", r"line 2: the row has 3 cells, the header 2"),
        ("a.csv", 'id,text\n1,"red\n2,blue\n', r"line 3: not a row of a table"),
        ("a.csv", "id,text,text\n1,red,blue\n", "the column 'text' stands twice"),
        ("a.csv", "id,text\n", "the table has no rows"),
        ("a.csv", "index;text\n1;red\n", "there is no field 'id'; it has index;text"),
        ("a.json", {"config": [{"name": "x"}]}, r"expected a list of records with id and text, found config \(name\)"),
        ("a.json", {"7": "red", "8": "blue"}, r"found the object itself \(key, value\)"),
        ("a.json", {}, "with id and text, found none"),
        ("a.json", {"first": ROWS, "second": ROWS}, "the lists first and second both have records with id, text"),
        ("a.json", [ROWS[0], "red"], "a.json, record 2: expected a record with named fields, found 'red'"),
        ("a.json", [], "found an empty one"),
        ("a.json", "3", "expected a list of records with named fields, found int"),
        ("a.json", '{"7": "red", "7": "blue"}', "the key '7' stands twice"),
        ("a.json", '[{"id": 1,\n "text": }]', r"expected JSON lines, JSON, CSV or TSV in UTF-8 \(Expecting value: line 2"),
        ("a.jsonl", '{"id": 1, "text": "red"}\n{"id": 2, "text": ', r"a\.jsonl, line 2: not a line of JSON"),
        ("a.jsonl", "", "expected JSON lines"),
        ("a.json", "[" * 100_000, "expected JSON lines, JSON"),
        ("a.jsonl", '{"id": 1' + "0" * 5_000 + "}", "expected JSON lines, JSON"),
    ],
)
def test_what_is_no_list_of_records_is_an_error_with_its_place(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(TesseraError, match=message):
        read_records(write(tmp_path / name, content), FIELDS)


def test_other_encodings_and_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("id,text\n1,红色\n".encode("gbk"))
    with pytest.raises(TesseraError, match="in UTF-8"):
        read_records(path, FIELDS)
    with pytest.raises(UsageError, match="save the table as CSV"):
        read_records(tmp_path / "a.xlsx", FIELDS)
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / "missing.csv", FIELDS)
