"""Declaration of configuration sections: frozen, strict, keyword-only dataclasses whose fields have docstrings."""

from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Class decorator: unknown keys and wrong types are errors, and the docstring below a field is its help text."""
    validated: Any = dataclass(config=_STRICT, frozen=True, kw_only=True)(cls)
    return cast(type[T], validated)
