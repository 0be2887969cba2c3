"""Notes next to the tables."""

from typing import Any

import pytest

from evaluation.report.result_tables import describe_system, visual_token_table

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


def test_the_report_states_what_each_system_sees_of_the_images() -> None:
    systems = {
        "ours": {"model": {"path": "a"}, "visual_tokens": 729.0},
        "qwen": {"model": {"max_image_side": None}, "visual_tokens": 1299.66},
        "qwen-384px": {"model": {"max_image_side": 384}, "visual_tokens": 108.0},
        "paid": {"model": {"max_image_side": 1024}},
    }
    header, rows = visual_token_table({"systems": systems})
    assert header == ("system", "images", "visual tokens, mean")
    assert rows == [
        ("ours", "at its own resolution", "729.0"),
        ("qwen", "within its own limits", "1,299.7"),
        ("qwen-384px", "at most 384 pixels a side", "108.0"),
        ("paid", "at most 1,024 pixels a side", "unknown"),
    ]
