"""Penalties, length penalty, top_k, top_p and stop texts: the same tokens as `generate` of transformers, the model's own probabilities."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from answering.config import DESCRIPTION_NGRAM_SIZE, DecodingConfig, for_descriptions
from answering.decoding.beam_search import GeneratedSequence, beam_search
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch
from answering.decoding.sampling import collect, decode_steps
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer
from model.siglip_qwen.modeling import VisionLanguageModel
from tests.answering.stock_generate import NUM_NEW_TOKENS, assert_equal, stock_with_rules

PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.6},
    "presence and frequency": {"presence_penalty": 1.5, "frequency_penalty": 1.0},
    "2-grams": {"no_repeat_ngram_size": 2},
    "single tokens": {"no_repeat_ngram_size": 1},
    "all": {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "no_repeat_ngram_size": 3},
}


@pytest.fixture(scope="module")
def batch(answerer: FamilyAnswerer, requests: list[Request]) -> PromptBatch:
    return answerer.collate([answerer.encode(request) for request in requests])


def rules_of(answerer: FamilyAnswerer, ends: tuple[int, ...], **settings: Any) -> DecodingRules:
    return DecodingRules.from_config(DecodingConfig(max_new_tokens=NUM_NEW_TOKENS, **settings), ends, answerer.text)


@pytest.mark.parametrize("settings", [*PENALTIES.values(), {"length_penalty": -1.0}, {"length_penalty": 3.0}], ids=str)
def test_beams_equal_those_of_stock_generate(
    model: VisionLanguageModel, answerer: FamilyAnswerer, batch: PromptBatch, early_ends: tuple[int, ...], settings: dict[str, Any]
) -> None:
    rules = rules_of(answerer, early_ends, **settings)
    generated = beam_search(model, batch, 4, rules)
    assert_equal(generated, stock_with_rules(model, batch, 4, rules))
    neutral = beam_search(model, batch, 4, rules_of(answerer, early_ends))
    assert [[s.token_ids for s in own] for own in generated] != [[s.token_ids for s in own] for own in neutral]


@pytest.mark.parametrize("settings", PENALTIES.values(), ids=PENALTIES)
def test_greedy_answers_equal_those_of_stock_generate(
    model: VisionLanguageModel, answerer: FamilyAnswerer, batch: PromptBatch, early_ends: tuple[int, ...], settings: dict[str, Any]
) -> None:
    rules = rules_of(answerer, early_ends, **settings)
    generated = collect(decode_steps(model, batch, 1, rules), len(batch.input_ids), 1)
    assert_equal(generated, stock_with_rules(model, batch, 1, rules))


def test_log_probabilities_are_those_of_the_model_where_tokens_are_chosen_in_spite_of_a_penalty(
    model: VisionLanguageModel, answerer: FamilyAnswerer, batch: PromptBatch, early_ends: tuple[int, ...]
) -> None:
    rules = rules_of(answerer, early_ends, presence_penalty=0.05, frequency_penalty=0.02)
    beams = beam_search(model, batch, 4, rules)
    greedy = collect(decode_steps(model, batch, 1, rules), len(batch.input_ids), 1)
    for generated, k in ((beams, 4), (greedy, 1)):
        assert_equal(generated, stock_with_rules(model, batch, k, rules))
    differences = [abs(s.log_prob - (s.penalised_log_prob or 0.0)) for own in beams for s in own]
    assert max(differences) > 0.01, "no beam has a token twice"


def test_candidates_are_ordered_by_the_search_and_have_the_probabilities_of_the_model(
    answerer: FamilyAnswerer, requests: list[Request]
) -> None:
    beams = DecodingConfig(num_candidates=4, max_new_tokens=NUM_NEW_TOKENS, no_repeat_ngram_size=2, repetition_penalty=1.3)
    samples = dataclasses.replace(beams, strategy="sample", temperature=2.0, top_p=0.95, top_k=40)
    for decoding in (beams, samples):
        answers = answerer.answer(requests, decoding)
        generated = answerer.generate(requests, [answerer.encode(request) for request in requests], decoding)
        for request, answer, sequences in zip(requests, answers, generated, strict=True):
            for candidate in answer.candidates:
                texts = {answerer.text(sequence.token_ids).strip(): sequence for sequence in sequences}
                ids = texts[candidate.raw].token_ids
                if candidate.count == 1:
                    assert candidate.log_prob == pytest.approx(_forced_log_prob(answerer, request, ids), abs=1e-3)
            first = max(sequences, key=lambda sequence: (sequence.penalised_log_prob or 0.0) / len(sequence.token_ids))
            if all(candidate.count == 1 for candidate in answer.candidates):
                assert answer.first.raw == answerer.text(first.token_ids).strip()


@torch.no_grad()
def _forced_log_prob(answerer: FamilyAnswerer, request: Request, token_ids: tuple[int, ...]) -> float:
    """Log-probability of an answer by one forward pass over prompt and answer."""
    prompt = answerer.collate([answerer.encode(request)])
    ids = torch.cat([prompt.input_ids, torch.tensor([token_ids])], dim=1)
    logits = answerer.model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.images).logits.float()
    log_probs = logits[0, prompt.input_ids.shape[1] - 1 : -1].log_softmax(-1)
    return float(log_probs.gather(1, torch.tensor(token_ids)[:, None]).sum())


def test_sampling_among_one_token_is_greedy(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    greedy = answerer.answer(requests, DecodingConfig(strategy="greedy", max_new_tokens=NUM_NEW_TOKENS))
    for one_token in ({"top_k": 1}, {"top_p": 1e-6}):
        decoding = DecodingConfig(strategy="sample", num_candidates=3, temperature=5.0, max_new_tokens=NUM_NEW_TOKENS, **one_token)
        sampled = answerer.answer(requests, decoding)
        assert [[candidate.raw for candidate in answer.candidates] for answer in sampled] == [[answer.first.raw] for answer in greedy]
        assert [answer.first.log_prob for answer in sampled] == pytest.approx([answer.first.log_prob for answer in greedy], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "kept"), [({}, 5), ({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"top_p": 0.85}, 3), ({"top_k": 4, "top_p": 0.92}, 3)]
)
def test_tokens_are_sampled_among_the_most_probable(answerer: FamilyAnswerer, settings: dict[str, Any], kept: int) -> None:
    """Five tokens of probability .5, .25, .15, .07 and .03."""
    scores = torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]]).log()
    warped = rules_of(answerer, (), temperature=1.0, **settings).warpers(torch.empty(1, 0, dtype=torch.long), scores)
    assert warped.isfinite().tolist() == [[i < kept for i in range(5)]]


def test_penalties_count_the_tokens_of_the_answer() -> None:
    rules = DecodingRules.from_config(DecodingConfig(presence_penalty=1.0, frequency_penalty=0.25), (), str)
    tokens, logits = torch.tensor([[3, 3, 1]]), torch.zeros(1, 5)
    assert rules.penalties(tokens, logits).tolist() == [[0.0, -1.25, 0.0, -1.5, 0.0]]


def test_a_description_does_not_loop_by_default(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    def repeated(decoding: DecodingConfig) -> bool:
        (answers,) = answerer.generate(requests[:1], [answerer.encode(requests[0])], decoding)
        ids, n = answers[0].token_ids, DESCRIPTION_NGRAM_SIZE
        ngrams = [ids[i : i + n] for i in range(len(ids) - n + 1)]
        return len(set(ngrams)) < len(ngrams)

    short = DecodingConfig(strategy="greedy", max_new_tokens=8)
    assert repeated(for_descriptions(dataclasses.replace(short, no_repeat_ngram_size=0), 96)), "the model would loop"
    assert not repeated(for_descriptions(short, 96))
    assert for_descriptions(dataclasses.replace(short, no_repeat_ngram_size=3), 96).no_repeat_ngram_size == 3
    assert not DecodingRules.from_config(short, (), str).penalties, "short answers stay what they are"


def test_an_impossible_answer_is_an_error_and_not_a_candidate(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    never = GeneratedSequence((), -math.inf)
    found = GeneratedSequence((answerer.end_ids[0],), -1.0)
    prompt = answerer.encode(requests[1])
    assert len(answerer._answer(requests[1], prompt, [found, never], DecodingConfig()).candidates) == 1
    assert answerer._answer(requests[1], prompt, [never], DecodingConfig()).error == "no answer is possible under these decoding settings"
