"""The index on object storage, written and read over S3's HTTP API."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import cli
from errors import TesseraError, UsageError
from serving.search import ann_index
from serving.search.config import SearchConfig
from serving.search.folder_indexer import index_folder
from serving.search.image_index import ImageIndex, open_index
from tests.serving.search.conftest import fill, png
from tests.serving.search.s3 import Bucket, storage
from tools import clip

URI = "s3://library/images"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {"AWS_ACCESS_KEY_ID": "key-of-a-test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    with storage() as bucket:
        yield bucket


def options(bucket: Bucket) -> dict[str, str]:
    return {"endpoint": bucket.url, "allow_http": "true", "client_max_retries": "0"}


@pytest.fixture
def open_test_index(bucket: Bucket, parts: Path) -> Callable[..., ImageIndex]:
    def open_index_with(**changes: object) -> ImageIndex:
        settings = SearchConfig(batch_size=4, storage=options(bucket), **changes)  # type: ignore[arg-type]
        return open_index(settings, URI, str(parts / "clip"), create=True)

    return open_index_with


def test_images_are_indexed_found_added_and_removed_on_object_storage(
    open_test_index: Callable[..., ImageIndex], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library = fill(tmp_path / "library", range(6))
    index = open_test_index()
    assert index_folder(index, library).added == 6
    uploaded = index.add(png(9))
    reader = open_test_index()
    assert len(reader) == 7
    assert reader.search_by_image(png(9), 1)[0].id == uploaded
    assert reader.search_by_image(png(2), 1)[0].path == library / "2.png"
    assert index.remove(uploaded)
    assert len(reader) == 6, "a search sees the latest commit of another process"
    (library / "0.png").unlink()
    result = index_folder(reader, library)
    assert (result.added, result.removed, result.unchanged) == (0, 1, 5)
    assert bucket.keys == {"key-of-a-test"}
    assert all(key.startswith("images/") for key in bucket.objects)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"], "nothing is written to the local disk"


def test_a_large_index_on_object_storage_has_an_ann_index(
    open_test_index: Callable[..., ImageIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each query is several requests here.
    monkeypatch.setattr(ann_index, "NUM_PROBE_IMAGES", 3)
    monkeypatch.setattr(ann_index, "probe_texts", lambda: ("a red circle", "两个绿色的三角形"))
    index = open_test_index(exact_search_limit=5, recall=0.1)
    assert index_folder(index, fill(tmp_path / "library", range(12))).search.startswith("approximate search over 12 images")
    assert open_test_index(exact_search_limit=5).search_by_image(png(3), 1)[0].score == pytest.approx(1.0, abs=1e-5)


def test_the_command_reads_the_storage_from_the_configuration(
    bucket: Bucket, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "library", range(2))
    search = {"images": "library", "index": URI, "storage": options(bucket)}
    Path("trial.yaml").write_text(yaml.safe_dump({"name": "trial", "rerank": {"clip": str(parts / "clip")}, "search": search}))
    for arguments in (("index",), ("search", "--text", "a red circle", "-k", "1")):
        with pytest.raises(SystemExit) as ended:
            cli.run(clip.main, clip.arguments(), [*arguments, "--config", "trial.yaml"])
        assert not ended.value.code
    assert f"{URI}: 2 images" in capsys.readouterr().out
    assert not Path("data").exists()


def test_unavailable_storage_is_a_message_of_one_line(open_test_index: Callable[..., ImageIndex], bucket: Bucket) -> None:
    index = open_test_index()
    index.add(png(1))
    bucket.unavailable = True
    with pytest.raises(TesseraError, match=f"^{URI}: "):
        index.add(png(2))
    with pytest.raises(UsageError, match=rf"^search\.index: {URI} cannot be opened"):
        open_test_index()
