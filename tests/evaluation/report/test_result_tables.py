"""Notes next to the tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.metrics.short_answers import GAMEABLE_METRICS, METRICS
from evaluation.report.report_notes import describe_system
from evaluation.report.result_tables import GAMEABLE_TITLE, all_tables, visual_token_table
from evaluation.report.terminal_summary import render_tables
from evaluation.schema.summary_file import DatasetFigures, Summary
from tests.evaluation.conftest import Written
from tests.evaluation.fakes import system_figures

DECODING = {"num_candidates": 5, "strategy": "beam", "temperature": 1.0, "max_new_tokens": 12, "seed": 0}


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        (
            {"path": "checkpoints/a/checkpoint-9", "quantization": "as_trained", "short_answer_prompt": None},
            "checkpoint",
            "checkpoint checkpoints/a/checkpoint-9, quantization as_trained, beam with 5 candidates, at most 12 tokens, no prompt suffix",
        ),
        (
            {"path": "b", "quantization": "nf4", "short_answer_prompt": "One word.", "short_answer_prompt_zh": "一个词。"},
            "qwen3_vl",
            'qwen3_vl b, quantization nf4, beam with 5 candidates, at most 12 tokens, short questions end in "One word." or "一个词。"',
        ),
    ],
)
def test_the_report_describes_a_system_and_its_settings(model: dict[str, Any], kind: str, expected: str) -> None:
    assert describe_system(replace(system_figures({}), kind=kind, model=model, decoding=DECODING)) == expected


def test_the_report_states_what_each_system_sees_of_the_images() -> None:
    models: dict[str, tuple[dict[str, Any], float | None]] = {
        "ours": ({"path": "a"}, 729.0),
        "qwen": ({"max_image_side": None}, 1299.66),
        "qwen-384px": ({"max_image_side": 384}, 108.0),
        "paid": ({"max_image_side": 1024}, None),
    }
    systems = {name: replace(system_figures({}), model=model, visual_tokens=tokens) for name, (model, tokens) in models.items()}
    header, rows = visual_token_table(Summary(DatasetFigures("planted", "test", 1, 1, {}), systems, []))
    assert header == ("system", "images", "visual tokens, mean")
    assert rows == [
        ("ours", "at its own resolution", "729.0"),
        ("qwen", "within its own limits", "1,299.7"),
        ("qwen-384px", "at most 384 pixels a side", "108.0"),
        ("paid", "at most 1,024 pixels a side", "unknown"),
    ]


def test_metrics_that_can_be_gamed_stand_apart_under_a_heading_that_says_so(written: Written) -> None:
    tables = all_tables(written.evaluation_result.summary)
    header, rows = tables[GAMEABLE_TITLE]
    assert header == ("system", "choice", "fuzzy", "contains", "contains, either way")
    assert len(rows) == len(tables["Accuracy"][1])
    assert not {"fuzzy", "contains"} & set(tables["Accuracy"][0])
    assert GAMEABLE_TITLE in render_tables(written.evaluation_result.summary)
    for page in ("report.md", "report.html"):
        assert "74 % in each of them, 0 % officially" in (written.planned.out / page).read_text(encoding="utf-8")


def test_no_chart_and_no_finding_uses_a_metric_that_can_be_gamed() -> None:
    for path in [*Path("evaluation/report").glob("chart*.py"), Path("evaluation/report/findings.py"), Path("evaluation/statistics.py")]:
        assert not [name for name in METRICS if name in GAMEABLE_METRICS and f'"{name}"' in path.read_text(encoding="utf-8")], path
