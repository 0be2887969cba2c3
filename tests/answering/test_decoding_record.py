"""What identifies an answer in result files: settings that change nothing are left out, so that earlier files are found again."""

import json
from typing import Any

import pytest

from answering.config import DecodingConfig, for_descriptions
from answering.model_fingerprint import NEUTRAL_SETTINGS, decoding_record

BEFORE = {"num_candidates": 5, "strategy": "beam", "temperature": 1.0, "max_new_tokens": 16, "seed": 0}
"""The record of the defaults in versions without penalties."""
CHANGED: dict[str, Any] = {
    "top_p": 0.9,
    "top_k": 5,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "no_repeat_ngram_size": 2,
    "length_penalty": 0.0,
    "stop": (".",),
}


def test_settings_that_change_nothing_are_not_named() -> None:
    assert decoding_record(DecodingConfig()) == BEFORE
    assert decoding_record(DecodingConfig(no_repeat_ngram_size=0)) == BEFORE
    assert decoding_record(DecodingConfig(batch_size=1, cuda_graphs=False)) == BEFORE


@pytest.mark.parametrize("name", NEUTRAL_SETTINGS)
def test_every_setting_that_changes_an_answer_is_named_as_json_holds_it(name: str) -> None:
    record = decoding_record(DecodingConfig(**{name: CHANGED[name]}))
    assert record == BEFORE | json.loads(json.dumps({name: CHANGED[name]}))
    assert json.loads(json.dumps(record)) == record


def test_descriptions_are_recorded_with_what_ends_their_loops() -> None:
    assert decoding_record(for_descriptions(DecodingConfig(), 64)) == BEFORE | {"max_new_tokens": 64, "no_repeat_ngram_size": 12}
    assert decoding_record(for_descriptions(DecodingConfig(no_repeat_ngram_size=0), 64)) == BEFORE | {"max_new_tokens": 64}
