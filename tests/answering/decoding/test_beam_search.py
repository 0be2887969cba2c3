"""Beam search and sampling on the shared KV cache give the same candidates as `generate` of transformers."""

from types import SimpleNamespace

import pytest
import torch

from answering.decoding.beam_search import beam_search
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch
from answering.decoding.sampling import collect, decode_steps, sample_tokens
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer
from model.siglip_qwen.modeling import VisionLanguageModel
from tests.answering.stock_generate import NUM_NEW_TOKENS, assert_equal, num_distinct_lengths, plain, stock_greedy


@pytest.mark.parametrize("k", [2, 4])
def test_beams_equal_those_of_stock_generate(
    model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request], early_ends: tuple[int, ...], k: int
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    for ends in (answerer.end_ids, early_ends):
        generated = beam_search(model, batch, k, DecodingRules(NUM_NEW_TOKENS, ends))
        assert_equal(generated, plain(model, batch, ends, k))
    assert num_distinct_lengths(generated) > 2


class Table:
    """A model whose next-token distribution depends only on the last token and on the number of calls."""

    def __init__(self, seed: int, vocabulary: int, longest: int):
        logits = torch.randn(longest, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
        self.log_probs = logits.log_softmax(-1)
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(logits=self.log_probs[self.calls - 1][input_ids])


def slow_beam_search(log_probs: torch.Tensor, start: int, k: int, longest: int, ends: set[int]) -> list[tuple[int, ...]]:
    """A reference beam search in plain Python: it scores every continuation of every beam."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, (start,))]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        extended = [(s + float(log_probs[length - 1, t[-1], v]), (*t, v)) for s, t in beams for v in range(log_probs.shape[1])]
        extended.sort(key=lambda beam: -beam[0])
        finished += [(s / length, t) for s, t in extended[:k] if t[-1] in ends or length == longest]
        finished = sorted(finished, key=lambda beam: -beam[0])[:k]
        beams = [beam for beam in extended if beam[1][-1] not in ends][:k]
        if len(finished) == k and beams[0][0] / length <= finished[-1][0]:
            break
    return [tokens[1:] for _, tokens in finished]


@pytest.mark.parametrize(("ends", "k"), [(1, 3), (8, 3), (8, 2)])
def test_beams_equal_those_of_a_reference_search_in_plain_python(ends: int, k: int) -> None:
    """Also if most of the best continuations end in the same step, and k unfinished beams must remain."""
    starts = torch.tensor([[ends], [ends + 1]])
    for seed in range(60):
        model = Table(seed, 30, 5)
        batch = PromptBatch(starts, torch.ones_like(starts), torch.zeros_like(starts))
        generated = beam_search(model, batch, k, DecodingRules(5, list(range(ends))))
        expected = [slow_beam_search(model.log_probs, int(start), k, 5, set(range(ends))) for start in starts]
        assert [[sequence.token_ids for sequence in question] for question in generated] == expected


def test_greedy_answers_equal_those_of_stock_generate(
    model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request], early_ends: tuple[int, ...]
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    generated = collect(decode_steps(model, batch, 1, DecodingRules(NUM_NEW_TOKENS, early_ends)), len(requests), 1)
    assert_equal(generated, stock_greedy(model, batch, early_ends))
    assert num_distinct_lengths(generated) > 1


def test_padding_changes_no_candidate(model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request]) -> None:
    prompts = [answerer.encode(request) for request in requests]
    together = beam_search(model, answerer.collate(prompts), 3, DecodingRules(NUM_NEW_TOKENS, answerer.end_ids))
    alone = [beam_search(model, answerer.collate([prompt]), 3, DecodingRules(NUM_NEW_TOKENS, answerer.end_ids))[0] for prompt in prompts]
    assert_equal(together, alone)


def test_images_and_prompt_are_prefilled_once_per_question(
    model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request]
) -> None:
    images, tokens = [], []
    batch = answerer.collate([answerer.encode(request) for request in requests])
    hooks = [
        model.model.vision_tower.get_input_embeddings().register_forward_pre_hook(lambda _, args: images.append(len(args[0]))),
        model.model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs: tokens.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
    ]
    try:
        beam_search(model, batch, 4, DecodingRules(NUM_NEW_TOKENS, answerer.end_ids))
    finally:
        for hook in hooks:
            hook.remove()
    assert images == [5]
    # A question stays one row, which holds the latest tokens of all its beams.
    assert tokens == [tuple(batch.input_ids.shape), *[(5, 4)] * (NUM_NEW_TOKENS - 1)]


def test_questions_that_have_stopped_leave_the_batch(
    model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request], early_ends: tuple[int, ...]
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    rows: list[int] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        collect(decode_steps(model, batch, 1, DecodingRules(NUM_NEW_TOKENS, early_ends)), len(requests), 1)
        greedy, rows = rows, []
        beam_search(model, batch, 2, DecodingRules(NUM_NEW_TOKENS, early_ends))
    finally:
        hook.remove()
    for row_counts in (greedy, rows):
        assert row_counts[0] == 5 > row_counts[-1]
        assert row_counts == sorted(row_counts, reverse=True)


def test_sampled_tokens_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    sampled = sample_tokens(probabilities.log().expand(1000, -1), uniform)
    assert torch.bincount(sampled, minlength=6).tolist() == [0, 500, 0, 300, 200, 0]
    edges = sample_tokens(probabilities.log().expand(2, -1), torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert edges.tolist() == [1, 4]
