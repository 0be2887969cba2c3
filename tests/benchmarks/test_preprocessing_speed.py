"""The merge benchmark writes valid data and measures three merges of it; the image benchmark reads images in both ways."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from benchmarks.preprocessing_speed import NUM_PATTERNS, measure_images, measure_merges, write_synthetic_sources
from dataset.build.merge_report import MergeReport
from dataset.loading.image_transform import PixelReader
from dataset.loading.sample_store import SampleStore


def test_all_synthetic_records_are_kept_and_three_merges_are_measured(tmp_path: Path) -> None:
    config = write_synthetic_sources(tmp_path / "raw", num_images=70, records=100, size=(32, 24))
    runs = measure_merges(config, tmp_path / "merged")
    assert list(runs) == ["first", "unchanged", "one annotation file touched"]
    assert all(run.records == 100 and run.seconds > 0 and run.peak_bytes > 10 * 2**20 for run in runs.values())
    report = MergeReport.load(tmp_path / "merged" / "report.json")
    assert [source.kept for source in report.sources] == [20, 30, 50]
    assert report.images == 50, "all files have different bytes"
    assert {len(sample.messages) for sample in SampleStore(tmp_path / "merged").samples()} == {1, 3}


def test_reading_images_is_measured_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    original = PixelReader.read

    def recording_read(reader: PixelReader, images: Sequence[Image.Image]) -> torch.Tensor:
        read.extend(image.size for image in images)
        return original(reader, images)

    monkeypatch.setattr(PixelReader, "read", recording_read)
    rates = measure_images(processor, (40, 30), rounds=1)
    assert read.count((40, 30)) == NUM_PATTERNS
    assert rates.loader > 0 and rates.image_processor > 0
