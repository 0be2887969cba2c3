"""Reference results from `generate` of transformers, and comparison with them."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch
from benchmarks.generation_speed import parse_generated, stock_beam_search

NUM_NEW_TOKENS = 8


def plain(model: Any, batch: PromptBatch, ends: tuple[int, ...], k: int) -> list[list[GeneratedSequence]]:
    """The k best sequences of each question by beam search in `generate`."""
    output = stock_beam_search(model, batch, k, NUM_NEW_TOKENS, ends)
    rows = parse_generated(output.sequences, output.sequences_scores, ends)
    return [rows[i : i + k] for i in range(0, len(rows), k)]


def stock_greedy(model: Any, batch: PromptBatch, ends: tuple[int, ...]) -> list[list[GeneratedSequence]]:
    """The greedy sequence of each question from `generate`."""
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


def assert_equal(generated: list[list[GeneratedSequence]], expected: list[list[GeneratedSequence]]) -> None:
    assert [[sequence.token_ids for sequence in question] for question in generated] == [
        [sequence.token_ids for sequence in question] for question in expected
    ]
    sums = [[sequence.log_prob for sequence in question] for question in generated]
    assert torch.tensor(sums) == pytest.approx(
        torch.tensor([[sequence.log_prob for sequence in question] for question in expected]), abs=1e-4
    )


def num_distinct_lengths(generated: list[list[GeneratedSequence]]) -> int:
    """The number of different sequence lengths."""
    return len({len(sequence.token_ids) for question in generated for sequence in question})


class OfTheAnswer(LogitsProcessor):
    """The penalties, applied to what follows the prompt, as they are here."""

    def __init__(self, rules: DecodingRules, prompt_length: int):
        self.rules, self.prompt_length = rules, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        penalised: torch.Tensor = self.rules.penalties(input_ids[:, self.prompt_length :], scores)
        return penalised


@torch.no_grad()
def stock_with_rules(model: Any, batch: PromptBatch, k: int, rules: DecodingRules) -> list[list[GeneratedSequence]]:
    """k beams of `generate`, or the greedy sequence, with the log-probabilities of the unchanged logits."""
    config = GenerationConfig(
        max_new_tokens=rules.max_new_tokens,
        num_beams=k,
        num_return_sequences=k,
        do_sample=False,
        eos_token_id=list(rules.end_ids),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **({"length_penalty": rules.length_penalty} if k > 1 else {}),
    )
    prompt_length = batch.input_ids.shape[1]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.images}
    output = model.generate(**inputs, generation_config=config, logits_processor=[OfTheAnswer(rules, prompt_length)])
    log_probs = model.compute_transition_scores(
        output.sequences, output.logits, output.beam_indices if k > 1 else None, normalize_logits=True
    )
    rows = []
    for ids, scores in zip(output.sequences[:, prompt_length:].tolist(), log_probs.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(ids) if token in rules.end_ids), len(ids))
        rows.append(GeneratedSequence(tuple(ids[:length]), sum(scores[:length])))
    return [rows[i : i + k] for i in range(0, len(rows), k)]
