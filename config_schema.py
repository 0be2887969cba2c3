"""Configuration sections: frozen, strict, keyword-only dataclasses whose fields have docstrings; their keys in words, and the key that is
nearest to a mistyped one."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, cast, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Class decorator: unknown keys and wrong types are errors, and the docstring below a field is its help text."""
    validated: Any = dataclass(config=_STRICT, frozen=True, kw_only=True)(cls)
    return cast(type[T], validated)


def describe(section: Any, prefix: str = "") -> list[str]:
    """Help lines `key: type = default`, each followed by the documentation of the key, for a configuration section and its subsections."""
    lines: list[str] = []
    hints = typing.get_type_hints(section)
    documentation = {
        name: field.description
        for kind in reversed(section.__mro__)
        for name, field in getattr(kind, "__pydantic_fields__", {}).items()
        if field.description
    }
    for field in dataclasses.fields(section):
        hint, key, below = hints[field.name], prefix + field.name, list(_sections_below(hints[field.name]))
        variants = [kind for suffix, kind in below if not suffix]
        default = "" if field.default is dataclasses.MISSING or variants else f" = {_as_yaml(field.default)}"
        lines.append(f"  {key}: {_type_name(hint)}{default}")
        is_discriminator = get_origin(hint) is Literal and len(get_args(hint)) == 1
        lines.append(f"      {'Selects the variant.' if is_discriminator else ' '.join(documentation.get(field.name, '').split())}")
        for suffix, kind in below:
            if suffix or len(variants) > 1:
                lines.append(f"    {key}{suffix}, {kind.__doc__}")
            lines += [("  " if suffix else "") + line for line in describe(kind, f"{key}{suffix}.")]
    return lines


def _sections_below(hint: Any, suffix: str = "") -> Iterator[tuple[str, Any]]:
    """The sections that a field may hold, each with the rest of its key: ".N" for one in a list."""
    if dataclasses.is_dataclass(hint):
        yield suffix, hint
        return
    for part in get_args(hint):
        yield from _sections_below(part, ".N" if get_origin(hint) is tuple else suffix)


def _as_yaml(value: Any) -> str:
    """A default value in YAML notation."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join("..." if dataclasses.is_dataclass(part) else _as_yaml(part) for part in value) + "]"
    return str(value)


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"list of {_type_name(get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    if get_args(hint) and get_origin(hint) is not dict:
        return " | ".join(dict.fromkeys(_type_name(part) for part in get_args(hint)))
    name = getattr(hint, "__name__", str(hint))
    return {"str": "text", "Path": "path", "RemotePath": "URL", "dict": "mapping"}.get(name, name)


def nearest_key(section: Any, key: str) -> str | None:
    """The key of a section, or of one below it, whose name is most like `key`; None if none is alike. A list index stands as N."""
    key = ".".join("N" if part.isdigit() else part for part in key.split("."))
    known = list(dict.fromkeys(all_keys(section)))
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    namesakes = {last: next(iter(name for name in known if name.rpartition(".")[2] == last), "")}
    others = {name: name for name in known if name != parent}
    # A slip of the pen first, then the same name elsewhere, then what is somewhat alike.
    for word, names, cutoff in ((last, siblings, 0.8), (last, namesakes, 1.0), (last, siblings, 0.6), (key, others, 0.75)):
        close = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
        if close and names[close[0]]:
            return names[close[0]]
    return None


def all_keys(section: Any, prefix: str = "") -> list[str]:
    """The dotted names of all keys of a configuration section and of those below it, sections included."""
    keys: list[str] = []
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        keys.append(prefix + field.name)
        for suffix, kind in _sections_below(hints[field.name]):
            keys += all_keys(kind, f"{prefix}{field.name}{suffix}.")
    return keys
