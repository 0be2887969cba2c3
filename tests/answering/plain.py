"""What the library's own `generate` finds, and comparing with it."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from answering.decoding.beam_search import GeneratedSequence, PromptBatch
from benchmarks.generation_speed import parse_generated, stock_beam_search

NUM_NEW_TOKENS = 8


def plain(model: Any, batch: PromptBatch, ends: tuple[int, ...], k: int) -> list[list[GeneratedSequence]]:
    """What the library's own `generate` finds."""
    output = stock_beam_search(model, batch, k, NUM_NEW_TOKENS, ends)
    rows = parse_generated(output.sequences, output.sequences_scores, ends)
    return [rows[i : i + k] for i in range(0, len(rows), k)]


def stock_greedy(model: Any, batch: PromptBatch, ends: tuple[int, ...]) -> list[list[GeneratedSequence]]:
    """What the library's own `generate` says without beams."""
    config = GenerationConfig(
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config, **batch.images)
    log_probs = torch.stack(output.logits, dim=1).float().log_softmax(-1)
    rows = []
    for i, row in enumerate(output.sequences[:, batch.input_ids.shape[1] :].tolist()):
        length = next((j + 1 for j, token in enumerate(row) if token in ends), len(row))
        rows.append([GeneratedSequence(tuple(row[:length]), sum(float(log_probs[i, j, row[j]]) for j in range(length)))])
    return rows


def assert_equal(found: list[list[GeneratedSequence]], expected: list[list[GeneratedSequence]]) -> None:
    assert [[one.token_ids for one in question] for question in found] == [[one.token_ids for one in question] for question in expected]
    sums = [[one.log_prob for one in question] for question in found]
    assert torch.tensor(sums) == pytest.approx(torch.tensor([[one.log_prob for one in question] for question in expected]), abs=1e-4)


def num_distinct_lengths(found: list[list[GeneratedSequence]]) -> int:
    """How many different lengths there are."""
    return len({len(one.token_ids) for question in found for one in question})
