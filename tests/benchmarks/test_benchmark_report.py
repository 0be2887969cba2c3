"""A report is an aligned table on a terminal, and has the same content as Markdown and JSON."""

import json
from pathlib import Path

import torch

from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number


def test_a_table_is_aligned_and_saved_as_json_and_markdown(tmp_path: Path) -> None:
    report = BenchmarkReport(
        "Steps", {"machine": "a chip"}, ("path", "s"), [["ours", "1.50"], ["the others", "12.00"]], {"results": [1.5, 12.0]}
    )
    assert report.text().splitlines() == [
        "Steps",
        "machine: a chip",
        "",
        "path            s",
        "----------  -----",
        "ours         1.50",
        "the others  12.00",
    ]
    table, page = report.save(tmp_path / "new", "steps")
    assert json.loads(table.read_text()) == {"title": "Steps", "facts": {"machine": "a chip"}, "results": [1.5, 12.0]}
    assert page.read_text() == "# Steps\n\n- machine: a chip\n\n| path | s |\n|---|---:|\n| ours | 1.50 |\n| the others | 12.00 |\n"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"steps.json", "steps.md"}


def test_a_missing_number_is_a_dash() -> None:
    assert (format_number(None), format_number(1234.56), format_number(0.256, percent=True)) == ("-", "1,234.6", "25.6%")


def test_a_machine_has_the_commit_and_library_versions() -> None:
    machine = Machine.current(torch.device("cpu"))
    assert machine.software.startswith(f"torch {torch.__version__}")
    assert machine.commit and machine.device.endswith("CPU")
