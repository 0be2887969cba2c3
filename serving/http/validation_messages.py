"""Says what is wrong with a request in the request's own words: the field as the client wrote it, what was expected, what was found.

In: the entries of pydantic's ValidationError and of FastAPI's RequestValidationError. Out: sentences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_PROBLEMS = 3
"""Largest number of problems that a message states."""
MAX_SHOWN_CHARS = 40
"""Longer texts are not repeated in a message: they may be images."""
MARKS = ("<", "[")
"""First characters of what pydantic puts into the place of an error beside fields: branches of a union, `[key]`."""

EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
}
"""What was expected, by pydantic's type of an error, with the names of its context."""


class FieldError(ValueError):
    """A field that cannot be accepted. field: its name within the object that is validated, or empty; reason: a sentence without it."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field, self.reason = field, reason


def describe_problems(entries: Sequence[Mapping[str, Any]], body: object) -> str:
    """One message for the errors of a request.

    Args:
        entries: from `errors()` of the exception; the first part of each `loc` says where the value was sent (body, path, ...).
        body: the request's body as it was parsed; None if it was not.
    """
    problems = list(dict.fromkeys(_describe(entry, body) for entry in entries))
    more = len(problems) - MAX_PROBLEMS
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _describe(entry: Mapping[str, Any], body: object) -> str:
    kind, context = entry["type"], entry.get("ctx") or {}
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context.get('error', 'it ends too early')}"
    error = context.get("error")
    path = _path(entry["loc"][1:], body if entry["loc"][:1] == ("body",) else None, error.field if isinstance(error, FieldError) else "")
    return f"{path or 'the body'}: {_reason(kind, context, entry.get('input'))}"


def _reason(kind: str, context: Mapping[str, Any], value: object) -> str:
    """What is wrong with a value."""
    if kind == "missing":
        return "required, but missing"
    if kind == "extra_forbidden":
        return "not a field of this request"
    if kind in ("too_long", "too_short"):
        limit = f"at most {context['max_length']}" if kind == "too_long" else f"at least {context['min_length']}"
        return f"expected {limit} entries, found {context['actual_length']}"
    if kind in ("string_too_long", "string_too_short"):
        limit = f"at most {context['max_length']}" if kind == "string_too_long" else f"at least {context['min_length']}"
        return f"expected {limit} characters, found {len(value) if isinstance(value, str) else describe_value(value)}"
    error = context.get("error")
    if isinstance(error, Exception):
        # FastAPI's own message for a file field names a Python class.
        return "expected an uploaded file, found text" if str(error).startswith("Expected UploadFile") else str(error)
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind].format(**context)}, found {describe_value(value)}"
    return f"not valid, found {describe_value(value)}"


def _path(parts: Sequence[int | str], body: object, field: str) -> str:
    """The place of an error as the client wrote it, such as messages[1].content[0].image_url.url.

    A body in which a text stands where objects may stand has no further parts below the text.
    """
    path = ""
    for part in parts:
        if isinstance(part, str) and part.startswith(MARKS):
            continue
        if isinstance(body, str):
            return path
        if isinstance(part, int):
            path += f"[{part}]"
            body = body[part] if isinstance(body, list) and part < len(body) else None
        else:
            name = part if len(part) <= MAX_SHOWN_CHARS and part.isprintable() else f"(a name of {len(part):,} characters)"
            path += f".{name}" if path else name
            body = body.get(part) if isinstance(body, Mapping) else None
    return f"{path}.{field}" if path and field else path or field


def describe_value(value: object) -> str:
    """A value of a request as people name it; long texts are not repeated."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return text if len(text := f"{value}") <= MAX_SHOWN_CHARS else "a number that is too long"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= MAX_SHOWN_CHARS and value.isprintable() else f"a text of {len(value):,} characters"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else "something else"
