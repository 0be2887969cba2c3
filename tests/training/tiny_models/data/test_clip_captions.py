"""Texts for CLIP: statements of which one is right, phrases and the images they match, and the losses on them."""

import math
import random

import pytest
import torch
from transformers import Qwen2Tokenizer

from answering.rerank.statements import statement
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import Scene, Thing, generate_scene
from dataset.synthetic.scene_facts import Noun
from training.tiny_models.architectures import build_tokenizer
from training.tiny_models.contrastive_pretraining import r_precision, ranking_loss
from training.tiny_models.data.clip_captions import (
    _WORDINGS,
    CHOICES,
    PHRASES,
    QUESTIONS,
    ClipBatches,
    _Phrase,
    _phrase,
    _statements,
    _unrelated_answer,
)
from training.tiny_models.data.tokenizer_corpus import LANGUAGES, tokenizer_corpus

RED, RING = Thing(0, 0, "red", "circle"), Thing(2, 1, "black", "ring")
SIGN = Thing(1, 1, "blue", "sign", 7)


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(tokenizer_corpus())


@pytest.mark.parametrize(
    ("noun", "cell", "expected"),
    [
        (Noun("red", "circle"), None, True),
        (Noun("red", "circle"), (0, 0), True),
        (Noun("red", "circle"), (2, 1), False),
        (Noun("red", "ring"), None, False),
        (Noun(shape="sign", digit=7), None, True),
        (Noun(shape="sign", digit=3), None, False),
        (Noun(color="black"), None, True),
        (Noun(shape="star"), None, False),
    ],
)
def test_a_phrase_holds_for_a_scene_with_a_matching_object_in_its_cell(noun: Noun, cell: tuple[int, int] | None, expected: bool) -> None:
    assert _Phrase("", noun, cell).holds(Scene((RED, SIGN, RING), 1, "train", 0)) is expected


def test_phrases_name_their_attributes_and_hold_for_a_scene_of_the_batch() -> None:
    scenes = [generate_scene(3, "train", index) for index in range(20)]
    texts = set()
    for number in range(200):
        phrase = _phrase(scenes, random.Random(number))
        assert any(phrase.holds(scene) for scene in scenes)
        assert not phrase.noun.held_out
        if phrase.text.isascii():
            text = phrase.text.replace("crosses", "cross")
            assert all(str(word) in text for word in (phrase.noun.color, phrase.noun.shape, phrase.noun.digit) if word is not None)
        texts.add(phrase.text)
    assert any(text.isascii() for text in texts) and any(not text.isascii() for text in texts)
    assert len(texts) > 80


def test_the_right_statement_comes_first_and_only_once() -> None:
    languages_and_wordings = set()
    for index in range(150):
        scene = generate_scene(4, "train", index)
        statements = _statements(scene, scene.rng("statements"))
        assert len(statements) == QUESTIONS * CHOICES
        for right, *wrong in (statements[:CHOICES], statements[CHOICES:]):
            assert right not in wrong
        # The same random numbers give the questions of the statements.
        rng = scene.rng("statements")
        language, wording = rng.choice(LANGUAGES), rng.choice(_WORDINGS)
        questions = sample_questions(scene, language, rng, QUESTIONS)
        assert statements[0] == statement(questions[0].text, questions[0].answer.usual, language, wording)
        languages_and_wordings.add((language, wording))
    assert len(languages_and_wordings) == 4


def test_an_unrelated_answer_is_never_an_answer_to_the_question() -> None:
    for index in range(150):
        scene = generate_scene(5, "train", index)
        rng = scene.rng("stray")
        (question,) = sample_questions(scene, "en", rng, 1)
        assert _unrelated_answer(scene, question, rng) not in question.answer.all


def test_a_batch_has_all_texts_and_the_images_that_match_each_phrase(tokenizer: Qwen2Tokenizer) -> None:
    data = ClipBatches(1, 6, tokenizer, 96, tokenizer.eos_token_id)
    batch, again = data(2, "train"), data(2, "train")
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert len(batch["input_ids"]) == 6
    assert len(batch["statement_ids"]) == len(batch["statement_mask"]) == 6 * QUESTIONS * CHOICES
    assert batch["holds"].shape == (PHRASES, 6) and batch["holds"].any(1).all()
    ends = batch["phrase_mask"].sum(1) - 1
    assert (batch["phrase_ids"][torch.arange(PHRASES), ends] == tokenizer.eos_token_id).all()


def test_ranking_loss_compares_each_positive_with_all_negatives() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0, 0.0]])
    holds = torch.tensor([[True, True, False, False]])
    negatives = math.exp(1) + math.exp(0)
    expected = -(math.log(math.exp(2) / (math.exp(2) + negatives)) + math.log(math.exp(5) / (math.exp(5) + negatives))) / 2
    torch.testing.assert_close(ranking_loss(logits, holds), torch.tensor(expected))


def test_ranking_loss_has_no_gradient_on_rows_without_positives_or_without_negatives() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], requires_grad=True)
    loss = ranking_loss(logits, torch.tensor([[True, True], [True, False], [False, False]]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, 0] and logits.grad[2].tolist() == [0, 0] and logits.grad[1, 0] < 0


def test_r_precision_matches_a_computation_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    holds = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert r_precision(scores, holds) == pytest.approx((1 / 2 + 1) / 2)
