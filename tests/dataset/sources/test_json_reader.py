"""Annotation files are decoded record by record; errors name line and column."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dataset.sources import json_reader
from dataset.sources.json_reader import JsonReader, read_array
from errors import TesseraError


def write_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (None, True, False, rng.randrange(-(10**9), 10**9), rng.random() * 10 ** rng.randrange(-9, 9), random_text(rng))[kind]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice('ab "\\\n\t/图像é😀\u2028') for _ in range(rng.randrange(12)))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_records_do_not_depend_on_the_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr(json_reader, "_CHUNK", chunk)
    rng = random.Random(chunk)
    records = [random_value(rng) for _ in range(40)]
    assert list(read_array(write_file(tmp_path, json.dumps(records, **layout)))) == records
    assert list(read_array(write_file(tmp_path, json.dumps({"info": records[:3], "data": records}, **layout)), member="data")) == records


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('[{"a": 1},\n {"b": oops}]', 2, 8),
        ('[{"a": 1}\n {"b": 2}]', 2, 2),
        ('[\n\n"图像", x]', 3, 7),
        ('[{"a": "no end}]', 1, 8),
        ("[1, 2", 1, 6),
        ('[1, "a\nb"]', 1, 7),
        ("[1] [2]", 1, 5),
        ('["\\ud8', 1, 4),
    ],
)
def test_invalid_json_is_reported_with_line_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, column: int, chunk: int
) -> None:
    monkeypatch.setattr(json_reader, "_CHUNK", chunk)
    path = write_file(tmp_path, text)
    with pytest.raises(TesseraError, match=rf"file\.json: not valid JSON at line {line} column {column}: "):
        list(read_array(path))


def test_line_and_column_agree_with_the_json_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "_CHUNK", 16)
    text = json.dumps([{"caption": "一只猫", "n": i} for i in range(30)], indent=1, ensure_ascii=False)
    for position in range(2, len(text), 13):
        broken = text[:position] + "}" + text[position:]
        try:
            json.loads(broken)
        except json.JSONDecodeError as error:
            with pytest.raises(TesseraError, match=rf"line {error.lineno} column {error.colno}:"):
                list(read_array(write_file(tmp_path, broken)))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 10_000 + "]"])
def test_documents_beyond_the_limits_of_the_decoder_are_reported(tmp_path: Path, text: str) -> None:
    with pytest.raises(TesseraError, match="not valid JSON at line 1"):
        list(read_array(write_file(tmp_path, text)))


def test_bytes_that_are_not_utf8_affect_only_their_record(tmp_path: Path) -> None:
    good, bad, last = read_array(write_file(tmp_path, b'["\xe5\x9b\xbe", "caf\xe9", "end"]'))
    assert (good, last) == ("图", "end")
    with pytest.raises(UnicodeEncodeError):
        bad.encode()


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert list(read_array(write_file(tmp_path, b"\xef\xbb\xbf[1]"))) == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rows": []}', "expected a JSON list of records, found an object"),
        ("3", "expected a JSON list of records, found a single value"),
        ("", "not valid JSON at line 1 column 1"),
        (" \n", "not valid JSON at line 2 column 1"),
    ],
)
def test_a_document_that_is_not_a_list_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TesseraError, match=message):
        list(read_array(write_file(tmp_path, text)))


def test_an_object_without_the_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TesseraError, match='an object with a list "data"; it has no such key'):
        list(read_array(write_file(tmp_path, '{"rows": []}'), member="data"))


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(TesseraError, match=r"none\.json: cannot be read"):
        list(read_array(tmp_path / "none.json"))


def test_after_each_key_the_cursor_is_at_its_value(tmp_path: Path) -> None:
    with JsonReader(write_file(tmp_path, '{"a": [1, 2], "b": {"c": 3}, "d": "x"}')) as file:
        content = {key: list(file.iter_array()) if key == "a" else file.value() for key in file.iter_keys()}
        file.end()
    assert content == {"a": [1, 2], "b": {"c": 3}, "d": "x"}


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "_CHUNK", 1 << 16)
    path = write_file(tmp_path, json.dumps([{"id": i, "text": "x" * 1000} for i in range(4000)]))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_array(path)) == 4000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4
