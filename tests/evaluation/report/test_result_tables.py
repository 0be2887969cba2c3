"""What is printed beside the figures."""

from typing import Any

import pytest

from evaluation.report.result_tables import describe_system

DECODING = {"k": 5, "mode": "beam", "temperature": 1.0, "max_new_tokens": 12, "seed": 0}


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (
            {"path": "checkpoints/a/checkpoint-9", "quantization": "as_trained", "short_answer_prompt": None},
            "checkpoint",
            "checkpoint checkpoints/a/checkpoint-9, quantization as_trained, beam with k = 5, at most 12 tokens, bare questions",
        ),
        (
            {"path": "b", "quantization": "nf4", "short_answer_prompt": "One word.", "short_answer_prompt_zh": "一个词。"},
            "qwen3_vl",
            'qwen3_vl b, quantization nf4, beam with k = 5, at most 12 tokens, short questions end in "One word." or "一个词。"',
        ),
    ],
)
def test_a_report_says_what_was_asked_and_how(model: dict[str, Any], kind: str, said: str) -> None:
    assert describe_system({"kind": kind, "model": model, "decoding": DECODING}) == said
