"""Attention supervision: mention spans, attention targets, and the loss compared with the attention weights of the stock model."""

import random
from itertools import pairwise

import pytest
import torch
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.scene import Scene, Thing, generate_scene
from dataset.synthetic.scene_descriptions import as_text, mention_spans
from dataset.synthetic.scene_facts import Noun
from model.siglip_qwen.processor import Processor
from training.tiny_models.architectures import build_tiny_model, build_tokenizer
from training.tiny_models.attention_supervision import _LAYER, LOOKUP_TARGETS, NO_OBJECT, forward_with_attention_loss
from training.tiny_models.data.pretraining_batches import TextConversationBatches
from training.tiny_models.data.tokenizer_corpus import tokenizer_corpus


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(tokenizer_corpus())


@pytest.fixture(scope="module")
def data(tokenizer: Qwen2Tokenizer) -> TextConversationBatches:
    processor = Processor(tokenizer, None, image_token="<|image_pad|>", tokens_per_image=1, max_length=384)
    return TextConversationBatches(1, 24, processor, only_questions=True)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_mention_span_names_its_own_object_only(language: Language) -> None:
    tables = 0
    for index in range(400):
        scene = generate_scene(1, "train", index)
        text = as_text(scene, language, random.Random(index))
        spans = mention_spans(text, scene, language)
        tables += "|" in text
        for thing, (start, end) in zip(scene.things, spans, strict=True):
            mention = text[start:end]
            assert vocabulary.noun_phrase(Noun.of(thing), language) in mention
            assert thing.digit is None or str(thing.digit) in mention
            if "|" not in text:
                position = vocabulary.position_phrase(thing.cell, language)
                assert mention.lower().count(position) == 1
                # Not the beginning of a longer position phrase.
                assert not text[end:].startswith((" left", " right"))
        ordered = sorted(spans)
        assert all(first[1] <= second[0] for first, second in pairwise(ordered))
    assert 100 < tables < 220


def test_bottom_does_not_match_inside_bottom_left() -> None:
    scene = Scene((Thing(2, 0, "red", "circle"), Thing(2, 1, "red", "circle")), 1, "train", 0)
    longer, shorter = "a red circle at the bottom left", "a red circle at the bottom"
    text = f"Here is {longer} and {shorter}."
    assert mention_spans(text, scene, "en") == [(8, 8 + len(longer)), (len(text) - 1 - len(shorter), len(text) - 1)]


def test_a_text_about_another_scene_is_rejected() -> None:
    scene, other = generate_scene(1, "train", 0), generate_scene(1, "train", 1)
    text = next(text for seed in range(20) if "|" not in (text := as_text(other, "en", random.Random(seed))))
    with pytest.raises(ValueError, match="is not mentioned in"):
        mention_spans(text, scene, "en")


def test_answer_tokens_have_the_objects_of_the_question_as_targets(tokenizer: Qwen2Tokenizer, data: TextConversationBatches) -> None:
    batch = data(0, "train")
    num_targets = 0
    for row, scene in enumerate(data.scenes(0, "train")):
        for object_index, thing in enumerate(scene.things):
            mention = tokenizer.decode(batch["input_ids"][row][batch["mentioned"][row] == object_index])
            assert any(vocabulary.noun_phrase(Noun.of(thing), language) in mention for language in ("en", "zh"))
        for name in LOOKUP_TARGETS:
            for position in torch.nonzero(batch[name][row] != NO_OBJECT).flatten().tolist():
                # The next token belongs to an answer and is not the end token.
                assert batch["labels"][row, position + 1] == batch["input_ids"][row, position + 1]
                assert batch["input_ids"][row, position + 1] != data.processor.end_of_turn_id
                assert 0 <= batch[name][row, position] < len(scene.things)
                num_targets += 1
    assert num_targets > 100


def test_the_loss_is_that_of_the_stock_models_attention_and_the_hidden_states_are_its_own(
    tokenizer: Qwen2Tokenizer, data: TextConversationBatches
) -> None:
    model = build_tiny_model("qwen3", tokenizer, 0)
    assert isinstance(model, Qwen3ForCausalLM)
    model.eval().set_attn_implementation("eager")
    batch = data(0, "train")
    with torch.inference_mode():
        hidden, attention_loss = forward_with_attention_loss(model, batch)
        stock = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True)
    is_token = batch["attention_mask"].bool()
    torch.testing.assert_close(hidden[is_token], stock.last_hidden_state[is_token])
    attention_masses = []
    for head, name in enumerate(LOOKUP_TARGETS):
        for row, position in torch.nonzero(batch[name] != NO_OBJECT).tolist():
            attention = stock.attentions[_LAYER][row, head, position]
            attention_masses.append(attention[batch["mentioned"][row] == batch[name][row, position]].sum())
    torch.testing.assert_close(attention_loss, -torch.stack(attention_masses).log().mean())
