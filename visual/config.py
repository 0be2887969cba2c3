"""Names of pre-trained models in the configuration: a local folder or a hub name."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from visual.hub_name import HubName

_MODEL_NAME = "a pre-trained model"

ModelNameOrPath = Annotated[str, Field(min_length=1), _MODEL_NAME]
"""A folder in the Hugging Face format, or a hub name such as `google/siglip-so400m-patch14-384`. `name@revision` names a branch, tag
or commit of the hub."""


def is_missing_folder(name: str) -> bool:
    """True when `name` can only mean a local folder and that folder does not exist."""
    return not Path(name).is_dir() and HubName.parse(name) is None


def iter_model_names(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a configuration section that name a pre-trained model, with their values. prefix: put before each key."""
    hints = typing.get_type_hints(type(section), include_extras=True)
    for field in dataclasses.fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        if isinstance(value, str) and _is_model_name(hints[field.name]):
            yield key, value
        for member_key, member in _sections(key, value):
            yield from iter_model_names(member, member_key + ".")


def _sections(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The configuration sections in a value: the value itself, or the members of a list."""
    if dataclasses.is_dataclass(value):
        yield key, value
    elif isinstance(value, tuple):
        for i, member in enumerate(value):
            yield from _sections(f"{key}.{i}", member)


def _is_model_name(hint: Any) -> bool:
    return _MODEL_NAME in getattr(hint, "__metadata__", ()) or any(_is_model_name(part) for part in typing.get_args(hint))
