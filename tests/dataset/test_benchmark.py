"""The benchmark of merging makes up sound data and measures three merges of it."""

from pathlib import Path

from dataset.benchmark import draw_raw_files, measure_merges
from dataset.report import Report
from dataset.store import Store


def test_all_that_it_makes_up_is_kept_and_the_runs_are_measured(tmp_path: Path) -> None:
    config = draw_raw_files(tmp_path / "raw", pictures=70, records=100, size=(32, 24))
    runs = measure_merges(config, tmp_path / "merged")
    assert list(runs) == ["first", "unchanged", "one annotation file touched"]
    assert all(run.records == 100 and run.seconds > 0 and run.peak_bytes > 10 * 2**20 for run in runs.values())
    report = Report.load(tmp_path / "merged" / "report.json")
    assert [source.kept for source in report.sources] == [20, 30, 50]
    assert report.images == 50, "no two files are alike"
    assert {len(sample.messages) for sample in Store(tmp_path / "merged").samples()} == {1, 3}
