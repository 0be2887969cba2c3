"""Images are checked in worker processes while the records are still being read."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset.build import image_validation
from dataset.build.image_check_cache import ImageCheckCache
from dataset.build.image_validation import ImageChecker
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.record_validation import DropReason
from dataset.source_config import MessagesSource
from errors import TesseraError
from tests.dataset.raw_files import RawFiles, conversation

NUM_IMAGES = 40


@pytest.fixture(autouse=True)
def pool_for_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_validation, "MIN_IMAGES_FOR_POOL", 2)
    monkeypatch.setattr(image_validation, "_CHUNK", 4)


def parquet_with_images(file: Path) -> MessagesSource:
    """A source whose images are inside its file; the last one is damaged."""
    rows = []
    for number in range(NUM_IMAGES):
        buffer = io.BytesIO()
        Image.effect_mandelbrot((20 + number, 16), (-2, -1, 1, 1), 5 + number).convert("RGB").save(buffer, "PNG")
        data = buffer.getvalue() if number < NUM_IMAGES - 1 else buffer.getvalue()[:-30]
        turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": str(number)}]
        rows.append({"messages": turns, "images": [{"bytes": data, "path": None}]})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return MessagesSource(format="messages", path=file)


def test_images_that_came_inside_a_file_are_checked_as_in_one_process(raw: RawFiles, tmp_path: Path) -> None:
    source = parquet_with_images(tmp_path / "in.parquet")
    report = raw.merge(source, workers=2)
    several = list(SampleStore(raw.merged).images())
    assert report.sources[0].dropped == {DropReason.UNDECODABLE: 1} and len(several) == NUM_IMAGES - 1
    (tmp_path / "alone").mkdir()
    alone = RawFiles(tmp_path / "alone")
    alone.merge(source, workers=1)
    sizes = [(image.width, image.height, image.sha256) for image in SampleStore(alone.merged).images()]
    assert [(image.width, image.height, image.sha256) for image in several] == sizes


def test_they_are_not_checked_again(raw: RawFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet_with_images(tmp_path / "in.parquet")
    before = raw.merge(source, workers=2)
    monkeypatch.setattr(ImageChecker, "_begin", lambda _self, _i, job: pytest.fail(f"{job} is checked again"))
    assert raw.merge(source, workers=2, seed=1).sources == before.sources


def test_checks_before_a_file_that_cannot_be_read_are_kept(raw: RawFiles) -> None:
    for number in range(NUM_IMAGES):
        raw.image(f"{number}.png", number)
    good = raw.llava([conversation(f"{number}.png", "?", "x") for number in range(NUM_IMAGES)])
    broken = raw.folder / "broken.parquet"
    broken.write_bytes(b"none")
    with pytest.raises(TesseraError, match="not a Parquet file"):
        raw.merge(good, MessagesSource(format="messages", path=broken), workers=2)
    cache = ImageCheckCache(raw.merged / "cache" / "image_checks.parquet", DataConfig().max_pixels)
    assert cache._entries
