"""What stands in a field of another tool's record: an id, an answer, reference answers. What cannot be read is an error with its place."""

import ast
import io
import json
import math
import tokenize
from itertools import pairwise
from typing import Any

from errors import TesseraError

MISSING = object()
"""Result of `lookup` where a record has no such field."""

_TEXT_KEYS = ("answer", "text")
"""Keys under which an object with a single entry holds one text, or one list of texts."""
_SHOWN_CHARS = 60


def lookup(record: Any, field: str) -> Any:
    """Value of a field, or of a dotted path of fields and list indices (`doc.answers.0`); MISSING if there is none."""
    if isinstance(record, dict) and field in record:
        return record[field]
    value = record
    for part in field.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def field_value(record: dict[str, Any], field: str, place: str) -> Any:
    """Value of a field. Raises TesseraError if the record has none."""
    value = lookup(record, field)
    if value is MISSING:
        raise TesseraError(f"{place}: there is no field '{field}'; it has {', '.join(map(str, record))}")
    return value


def id_text(value: Any, place: str) -> str:
    """A question's id, a text or a whole number, as text. Raises TesseraError for anything else."""
    text = _scalar_text(value)
    if text is None or not text.strip():
        raise TesseraError(f"{place}: expected an id, found {_shown(value)}")
    return text


def answer_text(value: Any, place: str) -> str | None:
    """An answer as text; None where the file has null: the system failed.

    A list of one text is that text, and so is an object with the single entry `answer` or `text`, also where a text holds one as JSON
    or Python writes it. Raises TesseraError for other lists and objects, which could only be scored as wrong.
    """
    if value is None:
        return None
    if isinstance(value, str):
        written = _written_value(value)
        return value if written is MISSING or _is_box(written) else answer_text(written, place)
    if isinstance(value, list) and len(value) == 1:
        return answer_text(value[0], place)
    if isinstance(value, dict) and (inner := _only_text(value)) is not MISSING:
        return answer_text(inner, place)
    text = _scalar_text(value)
    if text is None:
        raise TesseraError(f"{place}: expected one answer as text, found {_shown(value)}{_advice(value)}")
    return text


def reference_texts(value: Any, place: str) -> tuple[str, ...]:
    """Reference answers.

    One text or number, a list of them, the list of {"answer": text} of VQA, or one of these as JSON, Python or NumPy writes it in a
    text. Raises TesseraError for anything else, and where all references are blank.
    """
    if isinstance(value, str):
        written = _written_value(value)
        if written is MISSING and _looks_written(value):
            raise TesseraError(f"{place}: expected reference answers, found a list that cannot be read: {_shown(value)}")
        value = value if written is MISSING else written
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, dict) and isinstance(inner := _only_text(value), list):
        value = inner
    items = value if isinstance(value, list) else [value]
    texts = tuple(_reference_text(item, place) for item in items)
    if not any(text.strip() for text in texts):
        raise TesseraError(f"{place}: expected a reference answer, found {_shown(value)}")
    return texts


def _reference_text(item: Any, place: str) -> str:
    """One reference; an object of VQA has more entries than its answer, such as answer_confidence."""
    if isinstance(item, list) and len(item) == 1:
        return _reference_text(item[0], place)
    inner = item["answer"] if isinstance(item, dict) and "answer" in item else _only_text(item) if isinstance(item, dict) else item
    text = None if inner is MISSING else _scalar_text(inner)
    if text is None:
        raise TesseraError(f"{place}: expected reference answers as texts, found {_shown(item)}{_advice(item)}")
    return text


def _only_text(value: dict[str, Any]) -> Any:
    """The single entry of an object if its key says that it is the text, else MISSING."""
    (key, item), *others = value.items() if value else [("", MISSING)]
    return item if not others and key in _TEXT_KEYS else MISSING


def _scalar_text(value: Any) -> str | None:
    """A text or number as text, whole numbers without a fraction (pandas writes 3 as 3.0); None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def _is_box(value: Any) -> bool:
    """Whether a value is several numbers, such as a bounding box: a text that writes them is what the system said."""
    return (
        isinstance(value, list) and len(value) > 1 and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
    )


def _looks_written(text: str) -> bool:
    """Whether a text writes a list or an object, maybe one that was cut off."""
    text = text.strip()
    return (text[:1], text[-1:]) in (("[", "]"), ("{", "}")) or text.startswith(("['", '["', "[[", "[{", "{'", '{"'))


def _written_value(text: str) -> Any:
    """The list or object that a text holds as JSON, Python (also a tuple or set) or NumPy writes it; MISSING if it holds none."""
    stripped = text.strip()
    if not _looks_written(stripped) and (stripped[:1], stripped[-1:]) != ("(", ")"):
        return MISSING
    for parse in (json.loads, _python_value):
        try:
            value = parse(stripped)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        if isinstance(value, tuple):
            # (2, 3) is more likely a text than a tuple.
            return list(value) if any(isinstance(item, str) for item in value) else MISSING
        if isinstance(value, set):
            return sorted(value, key=str)
        return value if isinstance(value, list | dict) else MISSING
    return MISSING


def _python_value(text: str) -> Any:
    """A Python literal, or the texts of an array as NumPy prints it, without commas: ['a' 'b'], which Python would read as 'ab'.

    Raises ValueError or SyntaxError if it is neither.
    """
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in skipped]
    if not any(a.type == b.type == tokenize.STRING for a, b in pairwise(tokens)):
        return ast.literal_eval(text)
    if any(token.type != tokenize.STRING for token in tokens[1:-1]):
        raise ValueError("an array of which parts are missing")
    return [ast.literal_eval(token.string) for token in tokens[1:-1]]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."


def _advice(value: Any) -> str:
    """How to name one text within an object or list."""
    if isinstance(value, dict) and value:
        return f"; name the field within it, such as FIELD.{next(iter(value))}"
    return "; name one of them, such as FIELD.0" if isinstance(value, list) and value else ""
