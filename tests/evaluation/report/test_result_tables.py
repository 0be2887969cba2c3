"""Notes next to the tables."""

from typing import Any

import pytest

from evaluation.report.result_tables import describe_system

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
    assert describe_system({"kind": kind, "model": model, "decoding": DECODING}) == expected
