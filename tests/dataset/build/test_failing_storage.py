"""What a merge says when object storage cannot be used, and that the result of the merge before stays."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset.build.merge import OUTPUT_FILES, merge
from dataset.config import DataConfig
from dataset.object_storage import StorageError
from dataset.remote_files import RemotePath
from dataset.source_config import FolderSource, LlavaSource, Source
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation
from tests.dataset.remote_sources import ten_images
from tests.object_storage import Bucket, s3_environment


@pytest.fixture
def previous(raw: RawFiles) -> Callable[[], bool]:
    """Merges a local source; says whether the result is as it was then."""
    raw.merge(raw.llava([conversation(raw.image("before.png"), "?", "x")], name="before"))
    before = {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES}
    return lambda: {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == before


def failed_merge(config: DataConfig, folder: Path) -> tuple[str, float]:
    """The message with which a merge ends, and the seconds until then."""
    started = time.monotonic()
    with pytest.raises(TesseraError) as raised:
        merge(config, folder)
    return str(raised.value), time.monotonic() - started


def llava_at(url: str) -> Source:
    return LlavaSource(format="llava", annotations=RemotePath(url), images=RemotePath("s3://anything/pictures"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://{bucket}/none.json", "s3://{bucket}/none.json: cannot be read (No such file or directory)"),
        ("s3://{bucket}/folder", "s3://{bucket}/folder: cannot be read (Is a directory)"),
        ("s3://no-such-bucket/a.json", "s3://no-such-bucket/a.json: cannot be read (there is no bucket s3://no-such-bucket)"),
        ("gs://b/a.json", 'gs://b/a.json: gs:// needs the package gcsfs, which is not installed: pip install gcsfs, or "tessera-vlm[gs]"'),
        ("hf://datasets/a/b/c.json", "hf://datasets/a/b/c.json: hf:// cannot be read (the Hugging Face Hub cannot be reached, and "),
        ("s4://b/a.json", "s4://b/a.json: s4:// cannot be read (Protocol not known: s4)"),
    ],
)
def test_a_file_that_cannot_be_had_is_one_sentence_and_the_previous_result_stays(
    raw: RawFiles, bucket: Bucket, previous: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    bucket.put("folder/a.json", b"[]")
    found, seconds = failed_merge(raw.config(llava_at(url.format(bucket=bucket.name))), raw.merged)
    assert found.startswith(message.format(bucket=bucket.name)) and "\n" not in found
    assert seconds < 3 and previous()


def test_a_server_that_does_not_answer_is_one_sentence_after_seconds(
    raw: RawFiles, previous: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = raw.config(llava_at("s3://b-c-d/a.json"))
    with socket.socket() as silent, monkeypatch.context() as patch:
        patch.setattr("dataset.object_storage.ANSWER_SECONDS", 1.0)
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with s3_environment(f"http://127.0.0.1:{silent.getsockname()[1]}"):
            message, seconds = failed_merge(config, raw.merged)
    assert "s3:// cannot be read (the service does not answer within 1 s)" in message and 0.9 < seconds < 3
    with s3_environment("http://127.0.0.1:1"):
        message, seconds = failed_merge(config, raw.merged)
    assert "Could not connect to the endpoint URL" in message and seconds < 4
    assert previous()


def test_missing_credentials_are_one_sentence_that_says_where_they_belong(
    raw: RawFiles, bucket: Bucket, previous: Callable[[], bool], s3_endpoint: str
) -> None:
    with s3_environment(s3_endpoint, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None):
        message, seconds = failed_merge(raw.config(llava_at(f"{bucket.path}/a.json")), raw.merged)
    assert "no credentials for s3:// were found" in message and "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message
    assert seconds < 3 and previous()


def test_a_storage_that_fails_while_images_are_read_ends_the_merge_instead_of_dropping_them(
    raw: RawFiles, bucket: Bucket, previous: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    source = ten_images(raw, bucket)
    read = RemotePath.read

    def fail(path: RemotePath, max_bytes: int) -> bytes:
        if path.name == "7.bmp":
            raise StorageError(f"{path}: s3:// cannot be read (out of order)")
        return read(path, max_bytes)

    monkeypatch.setattr(RemotePath, "read", fail)
    monkeypatch.setattr("dataset.build.image_validation.RETRY_SECONDS", (0.0, 0.0, 0.0))
    message, _ = failed_merge(raw.config(source), raw.merged)
    assert message == f"{bucket.path}/pictures/7.bmp: s3:// cannot be read (out of order)" and previous()
    assert opened == [f"{i}.bmp" for i in (*range(8), 7)]
    opened.clear()
    monkeypatch.setattr(RemotePath, "read", read)
    # What was checked before is not read again.
    assert raw.merge(source).images == 10 and opened == ["7.bmp", "8.bmp", "9.bmp"]


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, *methods: str) -> None:
    """Make requests of these kinds to an S3 server fail, those for images where they read an object."""
    import s3fs

    original = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *arguments: Any, **others: Any) -> Any:
        if method in methods and (method != "get_object" or "pictures" in others["Key"]):
            raise error
        return await original(self, method, *arguments, **others)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)


def test_an_account_that_may_read_but_not_list_a_bucket_gets_the_same_merge(
    raw: RawFiles, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ten_images(raw, bucket)
    refuse(monkeypatch, PermissionError("Forbidden"), "list_objects_v2", "head_bucket")
    report = raw.merge(source)
    assert (report.images, report.sources[0].dropped) == (10, {"missing file": 1})
    with pytest.raises(TesseraError) as raised:
        raw.merge(FolderSource(format="folder", path=bucket.path / "pictures"))
    assert str(raised.value) == (f"{bucket.path}/pictures: Forbidden: the account of the credentials in the environment may not list it")


def test_credentials_that_expire_end_the_merge_and_an_image_that_may_not_be_read_does_not(
    raw: RawFiles, bucket: Bucket, previous: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ten_images(raw, bucket)
    with monkeypatch.context() as patch:
        refuse(patch, PermissionError("Access Denied"), "get_object")
        message, _ = failed_merge(raw.config(source), raw.merged)
        assert "11 dropped, missing file" in message and "Access Denied: the account of the credentials" in message and previous()
    expired = PermissionError("The provided token has expired.")
    expired.__cause__ = RuntimeError("An error occurred (ExpiredToken) when calling the GetObject operation")
    refuse(monkeypatch, expired, "get_object")
    # Rights that were refused are asked for again, though no image has changed.
    message, _ = failed_merge(raw.config(source), raw.merged)
    assert "0.bmp: the service refuses the credentials (The provided token has expired.)" in message and previous()


def test_google_cloud_storage_that_cannot_be_reached_is_found_out_before_its_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda _protocol: None)
    with pytest.raises(StorageError) as raised:
        RemotePath("gs://b/a.json").problem()
    assert str(raised.value) == "gs://b/a.json: gs:// cannot be read (http://127.0.0.1:1 cannot be reached)"
