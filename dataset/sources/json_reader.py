"""Streaming JSON reader: decodes the elements of a document one by one, so that files of any size fit into memory."""

import codecs
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from dataset.record_validation import encoding_hint
from dataset.remote_files import FilePath
from errors import TesseraError

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_TRUNCATION_MARGIN = 16
"""Characters at the end of the buffer in which a decoding error, or a number such as `1.` of `1.5`, may only mean that the
token continues in the next chunk."""


_VALUE_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A string, at the end of the text also an incomplete one, or a bracket outside strings."""

_UNICODE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}


def parse_integer(digits: str) -> int | float:
    """The integer; as a float, mostly infinite, when it has more digits than Python converts: such a number is no id and no answer."""
    limit = sys.get_int_max_str_digits()
    return int(digits) if not limit or len(digits) <= limit else float(digits)


class NestedTooDeeply:
    """Stands for a value with more levels than Python's JSON decoder takes."""


_LENIENT_DECODER = json.JSONDecoder(parse_int=parse_integer)
"""Slower than the standard one, which converts integers in C."""


def decode_json(text: str) -> Any:
    """A JSON document; numbers and nesting beyond Python's limits make `parse_integer`'s floats and NestedTooDeeply of it.

    Raises json.JSONDecodeError on invalid JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        return NestedTooDeeply()
    except ValueError:
        return _LENIENT_DECODER.decode(text)


class JsonReader:
    """A cursor in a JSON file, used as `with JsonReader(path) as file:`.

    `peek()` returns the next character ("[", "{" or another one), `iter_array()` yields the elements of the array at the
    cursor, `iter_keys()` the keys of the object at the cursor (after each key the caller reads its value with `value()` or
    `iter_array()`), and `value()` decodes the value at the cursor.

    Bytes that are not UTF-8 become lone surrogates, so that only the record that holds them is dropped.
    Raises TesseraError with line and column on invalid JSON, and when the file cannot be opened.
    """

    def __init__(self, path: FilePath):
        self.path = path

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb") if isinstance(self.path, Path) else self.path.open()
        except OSError as error:
            raise TesseraError(f"{self.path}: cannot be read ({error.strerror})") from error
        mark = self._file.read(4)
        if name := _UNICODE_MARKS.get(mark) or _UNICODE_MARKS.get(mark[:2]):
            self._file.close()
            raise TesseraError(f"{self.path}: the file is {name}; convert it to UTF-8, for instance with iconv -f {name} -t UTF-8")
        self._file.seek(0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._raw_decode = json.JSONDecoder().raw_decode
        self._text, self._position, self._at_end = "", 0, False
        self._lines_before, self._columns_before = 0, 0
        self._fill()
        if self._text.startswith("\ufeff"):
            self._position = 1
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is not white space, without consuming it; empty at the end of the file."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if self._at_end:
                return ""
            self._fill()

    def iter_array(self) -> Iterator[Any]:
        """Yield the elements of the array at the cursor, decoded one by one."""
        self._expect("[")
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield self.value()
            if self._expect(",]") == "]":
                return

    def iter_keys(self) -> Iterator[str]:
        """Yield the keys of the object at the cursor; the caller reads each value before the next key."""
        self._expect("{")
        if self.peek() == "}":
            self._position += 1
            return
        while True:
            if self.peek() != '"':
                raise self._error("expected a key in quotation marks", self._position)
            key: str = self.value()
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def iter_members(self, lists: Sequence[str], expected: str) -> Iterator[tuple[str, Any]]:
        """Yield the members of the object that the whole document is: keys with their values, those of `lists` with an iterator over the
        elements, which the caller exhausts. Raises TesseraError, saying what was expected, when it is no object or lacks one of the lists.
        """
        if self.peek() != "{":
            raise TesseraError(f"{self.path}: expected {expected}")
        missing = set(lists)
        for key in self.iter_keys():
            if key in lists and self.peek() == "[":
                missing.discard(key)
                yield key, self.iter_array()
            else:
                value = self.value()
                if key not in lists:
                    yield key, value
        self.end()
        if missing:
            name = "such key" if len(lists) == 1 else repr(min(missing))
            raise TesseraError(f"{self.path}: expected {expected}; it has no {name}")

    def value(self) -> Any:
        """Decode the value at the cursor; what Python's decoder does not take is read as `decode_json` does."""
        self.peek()
        while True:
            try:
                value, end = self._decode()
            except json.JSONDecodeError as error:
                truncated = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TRUNCATION_MARGIN
                if self._at_end or not truncated:
                    raise self._error(error.msg, error.pos) from error
            else:
                if self._at_end or end < len(self._text) - _TRUNCATION_MARGIN:
                    self._position = end
                    return value
            self._fill()

    def _decode(self) -> tuple[Any, int]:
        """The value at the cursor and the position of its end. Raises json.JSONDecodeError."""
        try:
            return self._raw_decode(self._text, self._position)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            return NestedTooDeeply(), self._end_of_nested()
        except ValueError:
            return _LENIENT_DECODER.raw_decode(self._text, self._position)

    def _end_of_nested(self) -> int:
        """Position after the array or object at the cursor, by its brackets alone. Raises json.JSONDecodeError where it does not end."""
        depth = 0
        for token in _VALUE_TOKEN.finditer(self._text, self._position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth == 0:
                return token.end()
        raise json.JSONDecodeError("Nested without an end", self._text, len(self._text))

    def end(self) -> None:
        """Raise TesseraError unless only white space follows."""
        if self.peek():
            raise self._error("extra data after the end of the document", self._position)

    def _expect(self, characters: str) -> str:
        character = self.peek()
        if not character or character not in characters:
            raise self._error(f"expected {' or '.join(map(repr, characters))}", self._position)
        self._position += 1
        return character

    def _fill(self) -> None:
        """Read the next chunk, at least as long as the unconsumed text, so that one long value takes linear time."""
        consumed, self._text = self._text[: self._position], self._text[self._position :]
        self._lines_before, self._columns_before = self._line_and_column(consumed, len(consumed))
        self._position = 0
        data = self._file.read(max(_CHUNK, len(self._text)))
        self._at_end = not data
        self._text += self._decoder.decode(data, final=self._at_end)

    def _line_and_column(self, text: str, position: int) -> tuple[int, int]:
        """Line and column, both from 0, of a position in `text`, counted from the start of the file."""
        lines = text.count("\n", 0, position)
        column = position - text.rfind("\n", 0, position) - 1 if lines else self._columns_before + position
        return self._lines_before + lines, column

    def _error(self, message: str, position: int) -> TesseraError:
        line, column = self._line_and_column(self._text, position)
        hint = encoding_hint(self._text[max(0, position - 200) : position + 200])
        return TesseraError(f"{self.path}: not valid JSON at line {line + 1} column {column + 1}: {message[:1].lower()}{message[1:]}{hint}")


def read_array(path: FilePath, member: str | None = None) -> Iterator[Any]:
    """The elements of a JSON file that is a list or, with `member`, an object with a list under that key.

    Raises TesseraError when it is neither, or invalid JSON.
    """
    with JsonReader(path) as file:
        first = file.peek()
        if first == "[":
            yield from file.iter_array()
            file.end()
        elif first == "{" and member is not None:
            for key, value in file.iter_members([member], f'a list, or an object with a list "{member}"'):
                if key == member:
                    yield from value
        else:
            file.value()
            found = "an object" if first == "{" else "a single value"
            hint = "; JSON lines are read with format: messages" if path.suffix == ".jsonl" else ""
            raise TesseraError(f"{path}: expected a JSON list of records, found {found}{hint}")
