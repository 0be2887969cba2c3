"""Paths and URLs: which of the two a text is, what is below a folder, and what a configuration with URLs says."""

import errno
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import config as configuration
from dataset import sources
from dataset.config import DataConfig
from dataset.loading.image_io import ImageError, read_image_file
from dataset.object_storage import StorageError
from dataset.record_validation import DropReason
from dataset.remote_files import RemotePath, parse_path, remote_states
from dataset.source_config import LlavaSource, WebDatasetSource
from dataset.sources.record import RawSample, RejectedRecord
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation
from tests.object_storage import Bucket


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/a//c.png", RemotePath("s3://b/a//c.png")),
        ("hf://datasets/o/n/x.parquet", RemotePath("hf://datasets/o/n/x.parquet")),
        ("raw/s3:/x", Path("raw/s3:/x")),
        ("C://x", Path("C://x")),
        ("file:///raw/x", Path("/raw/x")),
    ],
)
def test_a_text_with_a_protocol_is_a_url_and_every_other_one_a_local_path(text: str, expected: Path | RemotePath) -> None:
    assert parse_path(text) == expected
    assert str(pickle.loads(pickle.dumps(expected))) == str(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "s3://b/raw/a.png"),
        ("./c//a.png", "s3://b/raw/c/a.png"),
        ("../a.png", "s3://b/a.png"),
        ("x/../../../../a.png", "s3://b/a.png"),
        (".", "s3://b/raw"),
    ],
)
def test_a_name_is_joined_to_a_url_as_to_a_local_folder(name: str, expected: str) -> None:
    assert str(RemotePath("s3://b/raw/") / name) == expected
    assert (RemotePath("s3://b/raw/x.tar").parent, RemotePath("s3://b/raw").parent) == (RemotePath("s3://b/raw"), RemotePath("s3://b"))
    assert (RemotePath("s3://b/x.tar.gz").suffix, RemotePath("s3://b/x.json").stem, RemotePath("s3://b/y/").name) == (".gz", "x", "y")


def records(bucket: Bucket, name: str, **settings: Any) -> list[Any]:
    file = bucket.put("rows.json", f'[{{"id": "1", "image": "{name}", "conversations": []}}]'.encode())
    source = LlavaSource(format="llava", annotations=file, images=bucket.path / "images", **settings)
    [item] = sources.read(source, DataConfig())
    return [item.reason, item.detail] if isinstance(item, RejectedRecord) else [item]


@pytest.mark.parametrize("name", ["s3://other/a.png", "s3://{bucket}/images/../a.png", "s3://{bucket}/images-2/a.png", "/etc/a.png"])
def test_a_name_or_url_that_leads_out_of_the_folder_in_the_bucket_is_refused(bucket: Bucket, name: str) -> None:
    reason, detail = records(bucket, name.format(bucket=bucket.name))
    assert reason == DropReason.OUTSIDE and "allow_outside_images: true permits it" in detail


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://b/images/a.png", RemotePath("s3://b/images/a.png")),
        ("../a.png", RemotePath("s3://b/a.png")),
        ("a\\b.png", RemotePath("s3://b/images/a/b.png")),
        ("s3://other/a.png", RemotePath("s3://other/a.png")),
        ("/etc/a.png", Path("/etc/a.png")),
    ],
)
def test_an_image_may_be_named_by_a_url(raw: RawFiles, name: str, expected: Path | RemotePath) -> None:
    file = raw.write("rows.json", [conversation(name, "?", "x")])
    source = LlavaSource(format="llava", annotations=file, images=RemotePath("s3://b/images"), allow_outside_images=True)
    [item] = sources.read(source, DataConfig())
    assert isinstance(item, RawSample) and item.images == (expected,)


def test_a_url_in_a_local_source_is_read_where_the_source_allows_it(raw: RawFiles, bucket: Bucket) -> None:
    url = str(bucket.put("a.png", (raw.images / raw.image("a.png")).read_bytes()))
    names = [url, f"{bucket.path}/none.png", "s3://no-such-bucket/a.png", "no-protocol://x/a.png", "https://example.com/a.png"]
    refused = raw.merge(raw.llava([conversation(name, "?", "x") for name in ("a.png", *names)]))
    assert refused.sources[0].dropped == {"image outside its folder": 4, "missing file": 1}
    report = raw.merge(raw.llava([conversation(name, "?", "x") for name in names], allow_outside_images=True))
    assert (report.sources[0].kept, report.sources[0].dropped) == (1, {"missing file": 4})
    assert (
        report.sources[0]
        .examples["missing file"][0]
        .endswith("no-protocol://x/a.png: no such kind of URL is known; expected s3://, gs:// or hf://")
    )


def test_names_that_no_service_takes_are_missing_files(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    original = s3fs.S3FileSystem._call_s3

    async def call(self: Any, method: str, *arguments: Any, **others: Any) -> Any:
        if "\0" in others.get("Key", "") or len(others.get("Key", "")) > 1024:
            raise OSError(errno.EINVAL, "Bad Request")  # as Amazon S3 answers; the local server does not
        return await original(self, method, *arguments, **others)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    bucket.put("folder/a.png", b"")
    names = [f"{bucket.path}/{'x' * 2000}.png", f"{bucket.path}/\0.png", f"{bucket.path}/folder"]
    assert set(remote_states(names).values()) == {(-1, -1)}


def test_an_image_file_is_read_up_to_the_limit_and_an_empty_one_is_empty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.loading.image_io._MAX_METADATA_BYTES", 100)
    assert read_image_file(bucket.put("empty", b"")) == b""
    assert read_image_file(bucket.put("at the limit", bytes(108)), max_pixels=1) == bytes(108)
    with pytest.raises(ImageError, match=r"above: 109 bytes, more than an image of 1 pixels") as raised:
        read_image_file(bucket.put("above", bytes(109)), max_pixels=1)
    assert raised.value.reason == DropReason.TOO_LARGE
    with pytest.raises(ImageError, match="none: there is no such file"):
        read_image_file(bucket.path / "none")


def test_a_connection_that_breaks_within_a_file_is_no_damage_of_the_file(
    raw: RawFiles, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(raw.folder / "a.tar", "w") as archive:
        archive.add(raw.images / raw.image("a.png"), "a.png")
    bucket.upload(raw.folder)
    import s3fs

    def fail(*_: object) -> bytes:
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr("dataset.remote_files.RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fail)
    for source in (
        WebDatasetSource(format="webdataset", shards=bucket.path / "a.tar"),
        LlavaSource(format="llava", annotations=bucket.put("a.json", b"[1, 2]")),
    ):
        with pytest.raises(StorageError) as raised:
            list(sources.read(source, DataConfig()))
        assert str(raised.value) == f"{source.annotation_files[0]}: s3:// cannot be read (connection reset)"


def test_a_part_of_a_file_is_asked_for_again_after_a_broken_connection(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    fetch, failures = s3fs.core.S3File._fetch_range, [ConnectionResetError("connection reset")] * 2

    def fail_first(file: Any, start: int, end: int) -> Any:
        if failures:
            raise failures.pop()
        return fetch(file, start, end)

    monkeypatch.setattr("dataset.remote_files.RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("dataset.remote_files.BLOCK_BYTES", 1000)
    content = bytes(range(256)) * 20
    path = bucket.put("a.bin", content)
    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fail_first)
    assert path.open().read() == content and not failures


def load(folder: Path, source: str) -> configuration.Config:
    path = folder / "c.yaml"
    path.write_text(f"name: c\ndata:\n  sources:\n  - {source}\n", encoding="utf-8")
    return configuration.load(path)


def test_a_configuration_says_which_key_names_what_does_not_exist(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("a.json", b"[]")
    bucket.put("images/a.png", b"")
    for key, source, problem in (
        ("annotations", f"annotations: {bucket.path}/none.json", f"{bucket.path}/none.json does not exist or cannot be read (No such file"),
        (
            "annotations",
            "annotations: 's3://no-such-bucket/{0..9}.json'",
            "s3://no-such-bucket/0.json does not exist or cannot be read (there is no",
        ),
        (
            "images",
            f"annotations: {bucket.path}/a.json, images: {bucket.path}/none",
            f"{bucket.path}/none does not exist or cannot be read",
        ),
        ("annotations", "annotations: s4://b/a.json", "s4://b/a.json: s4:// cannot be read (Protocol not known: s4)"),
    ):
        with pytest.raises(UsageError) as raised:
            configuration.check_source_paths(load(tmp_path, f"{{format: llava, {source}}}"))
        assert str(raised.value).startswith(f"data.sources.0.{key}: {problem}")
    configuration.check_source_paths(
        load(tmp_path, f"{{format: llava, annotations: '{bucket.path}/*.json', images: {bucket.path}/images}}")
    )


def test_a_hub_source_refuses_a_url_and_says_what_reads_it(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="expected owner/name of a data set on the hub or a local folder; table, messages and webdataset read"
    ):
        load(tmp_path, "{format: hub, path: 's3://b/folder'}")


def test_local_files_are_merged_without_fsspec(raw: RawFiles) -> None:
    raw.llava([conversation(raw.image("a.png"), "?", "x")])
    code = f"""
import sys
from pathlib import Path
from dataset.build.merge import merge
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.source_config import LlavaSource
folder = Path({str(raw.folder)!r})
source = LlavaSource(format="llava", annotations=folder / "conversations.json", images=folder / "pictures")
merge(DataConfig(sources=(source,)), folder / "m")
SampleStore(folder / "m").load_image(0)
sys.exit("fsspec" in sys.modules or "huggingface_hub" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
