"""Candidates grown from the prefilled cache are those of plain `generate`."""

import pytest
import torch
from transformers import GenerationConfig, LlavaForConditionalGeneration

from answering.checkpoint import CheckpointAnswerer
from answering.generation import Generated, PromptBatch, _draw, beam_search, collect, steps
from answering.protocol import Request

NEW = 8


def plain(model: LlavaForConditionalGeneration, batch: PromptBatch, ends: tuple[int, ...], beams: int) -> list[list[Generated]]:
    """What the library's own `generate` finds."""
    config = GenerationConfig(
        max_new_tokens=NEW,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config, **batch.pictures)
    prompt = batch.input_ids.shape[1]
    rows = []
    for i, row in enumerate(output.sequences[:, prompt:].tolist()):
        length = next((j + 1 for j, token in enumerate(row) if token in ends), len(row))
        if beams > 1:
            log_prob = float(output.sequences_scores[i]) * length
        else:
            log_prob = sum(float(torch.log_softmax(output.logits[j][i], -1)[row[j]]) for j in range(length))
        rows.append(Generated(tuple(row[:length]), log_prob))
    return [rows[i : i + beams] for i in range(0, len(rows), beams)]


def assert_equal(found: list[list[Generated]], expected: list[list[Generated]]) -> None:
    assert [[one.token_ids for one in question] for question in found] == [[one.token_ids for one in question] for question in expected]
    sums = [[one.log_prob for one in question] for question in found]
    assert torch.tensor(sums) == pytest.approx(torch.tensor([[one.log_prob for one in question] for question in expected]), abs=1e-4)


def early_ends(model: LlavaForConditionalGeneration, batch: PromptBatch, answerer: CheckpointAnswerer) -> tuple[int, ...]:
    """End tokens that these untrained weights really reach, at different lengths."""
    free = plain(model, batch, answerer.end_ids, beams=4)
    return (*answerer.end_ids, free[0][1].token_ids[2], free[1][0].token_ids[4], free[2][0].token_ids[1])


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_equal_those_of_plain_generate(
    llava: LlavaForConditionalGeneration, answerer: CheckpointAnswerer, requests: list[Request], beams: int
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    for ends in (answerer.end_ids, early_ends(llava, batch, answerer)):
        found = beam_search(llava, batch, beams, NEW, ends)
        assert_equal(found, plain(llava, batch, ends, beams))
    lengths = {len(one.token_ids) for question in found for one in question}
    assert len(lengths) > 2, "no sequence ended early, so the end of a search was not compared"


def test_greedy_equals_plain_generate(llava: LlavaForConditionalGeneration, answerer: CheckpointAnswerer, requests: list[Request]) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    ends = early_ends(llava, batch, answerer)
    found = collect(steps(llava, batch, 1, NEW, ends), len(requests), 1)
    assert_equal(found, plain(llava, batch, ends, 1))
    assert len({len(question[0].token_ids) for question in found}) > 1


def test_padding_changes_no_candidate(llava: LlavaForConditionalGeneration, answerer: CheckpointAnswerer, requests: list[Request]) -> None:
    prompts = [answerer.encode(request) for request in requests]
    together = beam_search(llava, answerer.collate(prompts), 3, NEW, answerer.end_ids)
    alone = [beam_search(llava, answerer.collate([prompt]), 3, NEW, answerer.end_ids)[0] for prompt in prompts]
    assert_equal(together, alone)


def test_pictures_and_prompt_run_once_a_question(
    llava: LlavaForConditionalGeneration, answerer: CheckpointAnswerer, requests: list[Request]
) -> None:
    pictures, tokens = [], []
    batch = answerer.collate([answerer.encode(request) for request in requests])
    hooks = [
        llava.model.vision_tower.register_forward_pre_hook(lambda _, args: pictures.append(len(args[0]))),
        llava.model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs: tokens.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
    ]
    try:
        beam_search(llava, batch, 4, NEW, answerer.end_ids)
    finally:
        for hook in hooks:
            hook.remove()
    assert pictures == [5]
    assert tokens[0] == tuple(batch.input_ids.shape)
    assert all(length == 1 for _, length in tokens[1:])


def test_an_untempered_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = _draw(probabilities.log().expand(1000, -1), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 500, 0, 300, 200, 0]
    edges = _draw(probabilities.log().expand(2, -1), torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert edges.tolist() == [1, 4]
