"""A bucket of a local S3 server, and sources that are read from it."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dataset.object_storage import find_container
from dataset.remote_files import RemotePath
from dataset.source_base import SourceBase

S = TypeVar("S", bound=SourceBase)


class Bucket:
    """A bucket of an S3 server.

    Args:
        client: A client of boto3, which is not what is tested.
        name: Its name.
    """

    def __init__(self, client: Any, name: str):
        self.client, self.name, self.path = client, name, RemotePath(f"s3://{name}")
        client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> RemotePath:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
        return RemotePath(f"s3://{self.name}/{key}")

    def upload(self, folder: Path) -> None:
        """Write all files of a folder and its subfolders."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(path.relative_to(folder).as_posix(), path.read_bytes())

    def source(self, local: S, folder: Path) -> S:
        """The source with the files of this bucket in the place of those of a folder."""

        def moved(named: Any) -> Any:
            if isinstance(named, tuple):
                return tuple(map(moved, named))
            return named if named is None else self.path / named.relative_to(folder).as_posix()

        return dataclasses.replace(local, **{key: moved(getattr(local, key)) for key in (*local.file_keys, "images")})


@contextmanager
def s3_environment(endpoint: str, **others: str | None) -> Iterator[pytest.MonkeyPatch]:
    """Context in which the environment names an S3 server and credentials, and no connection of before is used."""
    import s3fs

    names = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    names["NO_PROXY"] = "127.0.0.1"
    # No look-up of credentials on the network, and none of the user's.
    names |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | others).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        find_container.cache_clear()
        yield patch
    s3fs.S3FileSystem.clear_instance_cache()
    find_container.cache_clear()
