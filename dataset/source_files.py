"""The keys of a source that name files: paths and URLs, one or several, with wildcards and numbers in braces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, PlainSerializer, PlainValidator, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from dataset.remote_files import FilePath, RemotePath, is_url, parse_path, remote_states


def _path_or_url(value: Any, info: ValidationInfo) -> FilePath:
    """A path as it is; that of a file of settings by its text."""
    if isinstance(value, Path | RemotePath):
        return value
    if isinstance(value, str) and info.mode == "json":
        return parse_path(value)
    raise PydanticCustomError("path_type", "Input is not a valid path")


PathOrUrl = Annotated[Path | RemotePath, PlainValidator(_path_or_url), PlainSerializer(str, when_used="json")]
"""A local path, or a URL of object storage: s3://, gs://, hf:// and what else fsspec knows."""

FilePaths = Annotated[
    Annotated[PathOrUrl, Tag("one")] | Annotated[tuple[PathOrUrl, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]
"""One file or several: a list, wildcards (part-*.json), numbers in braces ({00000..00331}.tar)."""


def matching_files(named: FilePaths) -> list[FilePath]:
    """The files that are named, in order; those of a pattern by name. A name that no file has stays, so that it is reported."""
    paths: list[FilePath] = []
    for path in named if isinstance(named, tuple) else (named,):
        if not set("*?[{") & set(str(path)) or path.exists():
            paths.append(path)
            continue
        # Imported here: reading a configuration with plain names does not need it.
        from braceexpand import braceexpand

        for pattern in braceexpand(str(path)):
            paths += _matching(pattern) or [parse_path(pattern)]
    return paths


def _matching(pattern: str) -> Sequence[FilePath]:
    """The files and folders that match one pattern, by name."""
    if not is_url(pattern):
        anchor = Path(pattern).anchor
        return sorted(Path(anchor).glob(str(Path(pattern).relative_to(anchor))))
    return RemotePath(pattern).glob() if set("*?[") & set(pattern) else []


def missing_file(named: FilePaths, are_folders: bool) -> str | None:
    """The first of the files or folders that does not exist, and why, as a sentence; None if all do. Raises StorageError."""
    paths = matching_files(named)
    # Many shards by one listing.
    states = {} if are_folders else remote_states(path.url for path in paths if isinstance(path, RemotePath))
    for path in paths:
        if isinstance(path, Path):
            if not path.exists():
                return f"{path} does not exist"
        elif states.get(path.url, (-1, -1))[0] < 0 and (problem := path.problem(are_folders)) is not None:
            return f"{path} does not exist or cannot be read ({problem})"
    return None
