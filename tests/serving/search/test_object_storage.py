"""The index on object storage: the same table behind an address, written and read over S3's protocol."""

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

PLACE = "s3://library/pictures"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {"AWS_ACCESS_KEY_ID": "key-of-a-test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    with storage() as found:
        yield found


def options(bucket: Bucket) -> dict[str, str]:
    return {"endpoint": bucket.url, "allow_http": "true", "client_max_retries": "0"}


@pytest.fixture
def opened(bucket: Bucket, parts: Path) -> Callable[..., ImageIndex]:
    def open_it(**changes: object) -> ImageIndex:
        settings = SearchConfig(batch_size=4, storage=options(bucket), **changes)  # type: ignore[arg-type]
        return open_index(settings, PLACE, str(parts / "clip"), create=True)

    return open_it


def test_images_are_indexed_found_added_and_removed_on_object_storage(
    opened: Callable[..., ImageIndex], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library = fill(tmp_path / "library", range(6))
    index = opened()
    assert index_folder(index, library).added == 6
    uploaded = index.add(png(9))
    reader = opened()
    assert len(reader) == 7
    assert reader.search_by_image(png(9), 1)[0].id == uploaded
    assert reader.search_by_image(png(2), 1)[0].path == library / "2.png"
    assert index.remove(uploaded)
    assert len(reader) == 6, "what another process writes is seen at the next question"
    (library / "0.png").unlink()
    done = index_folder(reader, library)
    assert (done.added, done.removed, done.unchanged) == (0, 1, 5)
    assert bucket.keys == {"key-of-a-test"}
    assert all(key.startswith("pictures/") for key in bucket.objects)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"], "nothing of it stands on the disk"


def test_a_large_index_on_object_storage_has_its_graph_there(
    opened: Callable[..., ImageIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each question is several requests here.
    monkeypatch.setattr(ann_index, "NUM_PROBE_IMAGES", 3)
    monkeypatch.setattr(ann_index, "probe_texts", lambda: ("a red circle", "两个绿色的三角形"))
    index = opened(exact_search_limit=5, recall=0.1)
    assert index_folder(index, fill(tmp_path / "library", range(12))).search.startswith("approximate search over 12 pictures")
    assert opened(exact_search_limit=5).search_by_image(png(3), 1)[0].score == pytest.approx(1.0, abs=1e-5)


def test_the_command_reads_the_storage_from_the_configuration(
    bucket: Bucket, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "library", range(2))
    search = {"images": "library", "index": PLACE, "storage": options(bucket)}
    Path("trial.yaml").write_text(yaml.safe_dump({"name": "trial", "rerank": {"clip": str(parts / "clip")}, "search": search}))
    for part in (("index",), ("search", "--text", "a red circle", "-k", "1")):
        with pytest.raises(SystemExit) as ended:
            cli.run(clip.main, clip.arguments(), [*part, "--config", "trial.yaml"])
        assert not ended.value.code
    assert f"{PLACE}: 2 pictures" in capsys.readouterr().out
    assert not Path("data").exists()


def test_storage_that_does_not_answer_is_one_line(opened: Callable[..., ImageIndex], bucket: Bucket) -> None:
    index = opened()
    index.add(png(1))
    bucket.unavailable = True
    with pytest.raises(TesseraError, match=f"^{PLACE}: "):
        index.add(png(2))
    with pytest.raises(UsageError, match=rf"^search\.index: {PLACE} cannot be opened"):
        opened()
