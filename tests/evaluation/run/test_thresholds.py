"""Thresholds: what they are compared with, and summaries without thresholds."""

from pathlib import Path

import pytest

from evaluation.config import Thresholds
from tests.evaluation.fakes import evaluate, experiment, questions, write_store
from tests.fakes import FakeAnswerer, always


def test_thresholds_apply_to_the_first_candidates_and_the_control_runs(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [row for row in questions(12) if "color" in row["sample_id"]])
    controls = ("shuffled_images", "untuned")
    limits = Thresholds(first=0.3, shuffled_images=0.1, untuned=0.0, min_lead=0.1)
    planned = experiment(store, tmp_path / "out", "ours", controls=controls, thresholds=limits, note="A planted one.")
    blind = FakeAnswerer(always(("white", -0.1)))
    red = FakeAnswerer(always(("red", -0.1)))
    evaluated = evaluate(planned, lambda _: red, lambda _: blind)
    summary = evaluated.record()
    same = summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"]
    assert 0.1 < same < 0.3
    assert summary["controls"]["shuffled_images"]["vqa_accuracy"] == same
    assert summary["note"] == "A planted one."
    assert [
        (threshold["name"], threshold["value"], threshold["kind"], threshold["limit"], threshold["met"])
        for threshold in summary["thresholds"]
    ] == [
        ("first", same, "at least", 0.3, False),
        ("shuffled_images", same, "at most", 0.1, False),
        ("untuned", 0.0, "at most", 0.0, True),
        ("min_lead", 0.0, "at least", 0.1, False),
    ]


def test_without_thresholds_the_summary_has_no_such_entry(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out")
    summary = evaluate(planned, lambda _: FakeAnswerer(always(("red", -0.1))), lambda _: pytest.fail("no control was asked for")).record()
    assert "thresholds" not in summary
    assert "note" not in summary
