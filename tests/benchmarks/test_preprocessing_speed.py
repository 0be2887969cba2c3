"""The benchmark of merging makes up sound data and measures three merges of it; that of reading takes both ways."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from benchmarks.preprocessing_speed import PATTERNS, draw_raw_files, measure_merges, measure_pictures
from dataset.build.merge_report import Report
from dataset.loading.image_transform import PixelReader
from dataset.loading.sample_store import Store


def test_all_that_it_makes_up_is_kept_and_the_runs_are_measured(tmp_path: Path) -> None:
    config = draw_raw_files(tmp_path / "raw", pictures=70, records=100, size=(32, 24))
    runs = measure_merges(config, tmp_path / "merged")
    assert list(runs) == ["first", "unchanged", "one annotation file touched"]
    assert all(run.records == 100 and run.seconds > 0 and run.peak_bytes > 10 * 2**20 for run in runs.values())
    report = Report.load(tmp_path / "merged" / "report.json")
    assert [source.kept for source in report.sources] == [20, 30, 50]
    assert report.images == 50, "no two files are alike"
    assert {len(sample.messages) for sample in Store(tmp_path / "merged").samples()} == {1, 3}


def test_reading_pictures_is_measured_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    usual = PixelReader.read

    def noting(reader: PixelReader, pictures: Sequence[Image.Image]) -> torch.Tensor:
        read.extend(picture.size for picture in pictures)
        return usual(reader, pictures)

    monkeypatch.setattr(PixelReader, "read", noting)
    rates = measure_pictures(processor, (40, 30), rounds=1)
    assert read.count((40, 30)) == PATTERNS
    assert rates.loader > 0 and rates.image_processor > 0
