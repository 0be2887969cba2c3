"""The benchmark of ways to keep data reads the same records in each of them."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import data_sources
from benchmarks.data_sources import compare_sources
from benchmarks.preprocessing_speed import measure_merge


def test_every_way_reads_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sources, "run_in_subprocess", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(data_sources, "ROWS_PER_SHARD", 20)
    measure = data_sources.measure_stream
    monkeypatch.setattr(data_sources, "measure_stream", lambda data, samples, _workers: measure(data, samples, 0))
    merged: list[Any] = []
    merge = measure_merge

    def counted(*arguments: Any) -> Any:
        merged.append(merge(*arguments))
        return merged[-1]

    monkeypatch.setattr(data_sources, "measure_merge", counted)
    lines = list(compare_sources(tmp_path, 10, 50, (64, 48), 32, 1))
    assert [one.records for one in merged] == [50, 50]
    assert len(list((tmp_path / "parquet").iterdir())) == 3
    starts = ("merge of files", "merge of Parquet", "Parquet in", "random images from files", "random images from packed", "packed at")
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=False)] == [True] * 6
    assert ["first after" in line for line in lines[6:]] == [True, True]
