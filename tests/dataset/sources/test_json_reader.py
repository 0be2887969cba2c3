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


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("brackets", ["[]", '{"[": }'])
def test_a_value_with_too_many_levels_is_one_unusable_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brackets: str, chunk: int
) -> None:
    monkeypatch.setattr(json_reader, "_CHUNK", chunk)
    opening, closing = brackets[:-1] * 30_000, brackets[-1] * 30_000
    nested = f'{opening}"]}} \\" ["{closing}'
    first, middle, last = read_array(write_file(tmp_path, f'["a", {nested}, {{"b": "[[["}}]'))
    assert (first, last) == ("a", {"b": "[[["})
    assert isinstance(middle, json_reader.NestedTooDeeply)


def test_a_value_with_too_many_levels_and_without_an_end_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TesseraError, match="not valid JSON at line 1 column 100001: nested without an end"):
        list(read_array(write_file(tmp_path, "[" * 100_000)))


def test_a_number_of_too_many_digits_is_no_id_but_no_error_either(tmp_path: Path) -> None:
    digits = "7" * 5000
    records = list(read_array(write_file(tmp_path, f'[{{"id": {digits}, "x": 1}}, {{"id": -{digits}}}, {{"id": 12}}]')))
    assert records == [{"id": float("inf"), "x": 1}, {"id": float("-inf")}, {"id": 12}]


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_a_file_in_another_unicode_encoding_is_named_as_such(tmp_path: Path, encoding: str, name: str) -> None:
    with pytest.raises(TesseraError, match=rf"file\.json: the file is {name}; convert it to UTF-8, for instance with iconv -f {name} "):
        list(read_array(write_file(tmp_path, '["图像"]'.encode(encoding))))


def test_json_that_gbk_bytes_have_broken_is_named_as_gbk(tmp_path: Path) -> None:
    # The second byte of 誠 in GBK is a backslash, which takes the closing quotation mark away.
    with pytest.raises(TesseraError, match=r"not valid JSON at line 1 .*; it is GBK \(一张图像"):
        list(read_array(write_file(tmp_path, '["一张图像上有一个男人誠", "b"]'.encode("gbk"))))


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
