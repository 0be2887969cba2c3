"""All benchmarks run in separate processes, and each target is met, missed, or not measured with a reason."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import config as configuration
from benchmarks.benchmark_report import Machine
from benchmarks.gpu_targets import MEASUREMENTS, TARGETS, Measurement, check, check_targets, prepare_data, run_all
from benchmarks.recipes import SIZES
from errors import TesseraError
from tools import benchmark


def row(path: str, median: float | None = None, **more: Any) -> dict[str, Any]:
    ratio = None if median is None else {"median": median, "lowest": median, "highest": median}
    return {"path": path, "seconds": [1.0], "ours_is_faster_by": ratio, "peak_gib": None, "share_of_product": None, **more}


def tables() -> dict[str, dict[str, Any] | str]:
    """Tables of a GPU that meets every target."""
    agreement = {"loss_off": 1e-3, "gradients_off": 0.015}
    train = [row("ours", peak_gib=44.0, share_of_product=0.55), row("stock, checkpointing", 7.5), row("stock", 3.2)]
    return {
        "train_1.7b": {"agreement": agreement, "results": train},
        "train_4b": {"agreement": agreement, "results": train},
        "train_8b": {"agreement": agreement, "results": train},
        "generate_1.7b": {"results": [row("ours"), row("stock, one at a time", 30.0), row("stock, batched", 4.5)]},
        "memory_4b_measured": {"bytes": {"in all": 9 * 2**30}},
        "memory_8b_measured": {"bytes": {"in all": 13 * 2**30}},
        "equality_tiny": {"rows": [{"differs_by": 0.5}, {"differs_by": 0.002}]},
    }


MACHINE = Machine.current(torch.device("cpu"))


def test_every_target_can_be_met() -> None:
    report = check_targets(tables(), MACHINE)
    assert {cells[3] for cells in report.rows} == {"yes"}
    check(report)
    assert {target.table for target in TARGETS} <= {measurement.table for measurement in MEASUREMENTS}


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("train_1.7b", {"results": [row("ours"), row("stock, checkpointing", 6.9)]}, "1.7B, times stock with checkpointing"),
        ("train_1.7b", {"agreement": {"loss_off": 0.021, "gradients_off": 0.0}}, "loss, ours against stock, Qwen3-1.7B"),
        ("train_4b", {"results": [row("ours", share_of_product=0.49), row("stock, checkpointing", 4.0)]}, "useful share"),
        ("memory_8b_measured", {"bytes": {"in all": 14.5 * 2**30}}, "QLoRA, Qwen3-8B"),
        ("equality_tiny", {"rows": [{"differs_by": 0.011}]}, "200 steps"),
    ],
)
def test_a_missed_target_is_marked_and_named_in_the_error(table: str, change: dict[str, Any], what: str) -> None:
    changed = tables()
    changed[table] = {**changed[table], **change}  # type: ignore[dict-item]
    report = check_targets(changed, MACHINE)
    (cells,) = [cells for cells in report.rows if what in cells[0]]
    assert cells[3] == "NO"
    with pytest.raises(TesseraError, match=rf"targets missed or not measured: .*{what}"):
        check(report)


def test_a_target_that_was_not_measured_has_a_reason_and_no_number() -> None:
    incomplete = tables()
    incomplete["memory_4b_measured"] = "status 1, see memory_4b_measured.log"
    incomplete["train_1.7b"] = {"agreement": None, "results": [row("ours"), {**row("stock"), "seconds": []}]}
    cells = {row_cells[0]: row_cells[2:] for row_cells in check_targets(incomplete, MACHINE).rows}
    assert cells["QLoRA, Qwen3-4B, rows of 1,024, 16 accumulated"] == ["-", "not measured: status 1, see memory_4b_measured.log"]
    assert cells["LoRA step, Qwen3-1.7B, times stock without checkpointing"] == ["-", "not measured: stock ran out of memory"]
    assert cells["LoRA step, Qwen3-1.7B, times stock with checkpointing"] == ["-", "not measured: stock, checkpointing was not run"]
    assert cells["LoRA step, Qwen3-1.7B, peak memory"] == ["-", "not measured: the device does not report peak_gib"]
    assert cells["loss, ours against stock, Qwen3-1.7B"] == ["-", "not measured: stock was not run"]


SCRIPT = """
import json, pathlib, sys
part, _, out, *settings = sys.argv[1:]
print(part, settings)
if part != "breaks":
    pathlib.Path(out, part + ".json").write_text(json.dumps({"settings": settings}))
sys.exit(part != "works")
"""


def test_each_benchmark_runs_in_a_separate_process_and_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    measurements = [Measurement(part, (part, "a=1")) for part in ("breaks", "fails_late", "works")]
    (tmp_path / "breaks.json").write_text("{}")
    results = run_all([sys.executable, "-c", SCRIPT], tmp_path, measurements)
    assert results == {"breaks": "status 1, see breaks.log", "fails_late": {"settings": ["a=1"]}, "works": {"settings": ["a=1"]}}
    assert (tmp_path / "works.log").read_text() == "works ['a=1']\n"
    assert not (tmp_path / "breaks.json").exists(), "a table of an earlier run is not used"


def test_data_that_cannot_be_created_is_an_error() -> None:
    with pytest.raises(TesseraError, match="failed, so there is no data to train on"):
        prepare_data([[sys.executable, "-c", "raise SystemExit(3)"]])


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda measurement: measurement.table)
def test_every_measurement_has_valid_arguments(measurement: Measurement) -> None:
    parsed = benchmark.arguments().parse_args([measurement.arguments[0], "--out", "tables", *measurement.arguments[1:]])
    assert parsed.out == Path("tables")
    table = measurement.table.removesuffix("_measured")
    assert table == f"{parsed.part}_{getattr(parsed, 'size', 'tiny')}"
    if parsed.part != "equality":
        settings = [*SIZES[parsed.size][1:], *parsed.settings]
        configuration.load(configuration.DEFAULT.parent / SIZES[parsed.size][0], settings)
