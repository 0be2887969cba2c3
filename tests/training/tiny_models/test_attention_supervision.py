"""Where to look: which tokens speak of which thing, which tokens look at which, and the loss against the model's own attention."""

import random
from itertools import pairwise

import pytest
import torch
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from dataset.sample import Language
from dataset.synthetic import vocabulary
from dataset.synthetic.scene import Scene, Thing, generate_scene
from dataset.synthetic.scene_descriptions import as_text, mention_spans
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
def test_a_mention_is_of_its_thing_and_of_no_other(language: Language) -> None:
    tables = 0
    for index in range(400):
        scene = generate_scene(1, "train", index)
        text = as_text(scene, language, random.Random(index))
        spans = mention_spans(text, scene, language)
        tables += "|" in text
        for thing, (start, end) in zip(scene.things, spans, strict=True):
            told = text[start:end]
            assert vocabulary.name(thing, language) in told
            assert thing.digit is None or str(thing.digit) in told
            if "|" not in text:
                place = vocabulary.at((thing.row, thing.column), language)
                assert told.lower().count(place) == 1
                # Not the beginning of a longer place.
                assert not text[end:].startswith((" left", " right"))
        ordered = sorted(spans)
        assert all(one[1] <= other[0] for one, other in pairwise(ordered))
    assert 100 < tables < 220


def test_a_place_is_not_taken_for_a_longer_one() -> None:
    scene = Scene((Thing(2, 0, "red", "circle"), Thing(2, 1, "red", "circle")), 1, "train", 0)
    longer, shorter = "a red circle at the bottom left", "a red circle at the bottom"
    text = f"Here is {longer} and {shorter}."
    assert mention_spans(text, scene, "en") == [(8, 8 + len(longer)), (len(text) - 1 - len(shorter), len(text) - 1)]


def test_a_text_about_another_scene_is_refused() -> None:
    scene, other = generate_scene(1, "train", 0), generate_scene(1, "train", 1)
    text = next(text for seed in range(20) if "|" not in (text := as_text(other, "en", random.Random(seed))))
    with pytest.raises(ValueError, match="is not mentioned in"):
        mention_spans(text, scene, "en")


def test_answers_look_at_what_is_asked_about(tokenizer: Qwen2Tokenizer, data: TextConversationBatches) -> None:
    batch = data(0, "train")
    looked = 0
    for row, scene in enumerate(data.scenes(0, "train")):
        for number, thing in enumerate(scene.things):
            told = tokenizer.decode(batch["input_ids"][row][batch["mentioned"][row] == number])
            assert any(vocabulary.name(thing, language) in told for language in ("en", "zh"))
        for name in LOOKUP_TARGETS:
            for place in torch.nonzero(batch[name][row] != NO_OBJECT).flatten().tolist():
                # What comes next is a token of an answer, and no end token.
                assert batch["labels"][row, place + 1] == batch["input_ids"][row, place + 1]
                assert batch["input_ids"][row, place + 1] != data.processor.end_of_turn_id
                assert 0 <= batch[name][row, place] < len(scene.things)
                looked += 1
    assert looked > 100


def test_the_loss_is_the_stock_attentions_share_and_the_states_are_the_stock_models(
    tokenizer: Qwen2Tokenizer, data: TextConversationBatches
) -> None:
    model = build_tiny_model("qwen3", tokenizer, 0)
    assert isinstance(model, Qwen3ForCausalLM)
    model.eval().set_attn_implementation("eager")
    batch = data(0, "train")
    with torch.inference_mode():
        found, looking = forward_with_attention_loss(model, batch)
        stock = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True)
    there = batch["attention_mask"].bool()
    torch.testing.assert_close(found[there], stock.last_hidden_state[there])
    shares = []
    for head, name in enumerate(LOOKUP_TARGETS):
        for row, place in torch.nonzero(batch[name] != NO_OBJECT).tolist():
            attention = stock.attentions[_LAYER][row, head, place]
            shares.append(attention[batch["mentioned"][row] == batch[name][row, place]].sum())
    torch.testing.assert_close(looking, -torch.stack(shares).log().mean())
