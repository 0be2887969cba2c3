"""Our own model as an answerer: errors affect only their request, order and batch size change no answer, streams equal answers."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from answering.config import DecodingConfig
from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.kv_cache import PromptBatch
from answering.prompts import PromptPolicy
from answering.protocol import Answer, Request
from answering.reply import Reranker, question_request, reply
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.image_text_scores import ImageTextScorer
from answering.rerank.statements import StatementForm
from answering.systems.family_answerer import FamilyAnswerer, eval_mode
from dataset.loading.encoded_sample import EncodingError
from dataset.sample import Message
from errors import TesseraError
from model.processors.sample_processor import Prompt
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.conftest import make_request, noise_image
from tests.answering.rerank.test_image_text_scores import RednessModel

BEAMS = DecodingConfig(num_candidates=4, max_new_tokens=6)
SAMPLES = DecodingConfig(num_candidates=4, strategy="sample", max_new_tokens=6, temperature=0.7)
GREEDY = DecodingConfig(strategy="greedy", max_new_tokens=6)


def assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.request_id, answer.error, answer.prompt) == (other.request_id, other.error, other.prompt)
        assert [c.raw for c in answer.candidates] == [c.raw for c in other.candidates]
        assert [c.log_prob for c in answer.candidates] == pytest.approx([c.log_prob for c in other.candidates], abs=1e-4)


def test_an_invalid_request_is_an_answer_with_an_error_and_affects_no_other(
    answerer: FamilyAnswerer, requests: list[Request], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = [
        make_request("missing", "What?", tmp_path / "none.jpg"),
        make_request("broken", "What?", broken),
        Request("marks", (noise_image(1),), (Message("user", "no mark"),)),
        Request("roles", (), (Message("assistant", "Hello"),)),
        Request("empty", (), ()),
        make_request("too long", "very " * 600, noise_image(1)),
    ]
    mixed = [request for pair in zip(bad, requests, strict=False) for request in pair] + bad[len(requests) :]
    answers = {answer.request_id: answer for answer in answerer.answer(mixed, BEAMS)}
    errors = {name: answers[name].error or "" for name in ("missing", "broken", "marks", "roles", "empty", "too long")}
    assert "there is no such file" in errors["missing"]
    assert "cannot be decoded" in errors["broken"]
    assert errors["marks"] == "0 <image> placeholders for 1 images"
    assert "roles must be" in errors["roles"]
    assert "roles must be" in errors["empty"]
    assert "at most 512 (model.max_length)" in errors["too long"]
    assert all(answers[name].candidates == () for name in errors)
    assert_same([answers[request.request_id] for request in requests], answerer.answer(requests, BEAMS))


def test_answers_state_their_visual_tokens(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    """36 tokens an image."""
    answers = answerer.answer(requests, GREEDY)
    assert [answer.visual_tokens for answer in answers] == [36 * len(request.images) for request in requests]
    assert {answer.visual_tokens for answer in answers} == {0, 36, 72}


@pytest.mark.parametrize("decoding", [BEAMS, SAMPLES, GREEDY], ids=["beams", "samples", "greedy"])
def test_order_and_batch_size_change_no_answer(answerer: FamilyAnswerer, requests: list[Request], decoding: DecodingConfig) -> None:
    expected = answerer.answer(requests, decoding)
    assert [answer.request_id for answer in expected] == [request.request_id for request in requests]
    one_by_one = dataclasses.replace(decoding, batch_size=1)
    assert_same(answerer.answer(requests[::-1], one_by_one)[::-1], expected)


def test_the_next_batch_is_encoded_while_the_model_runs(
    answerer: FamilyAnswerer, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = {request.request_id: threading.Event() for request in requests}
    encode, generate, batches = answerer.encode, answerer.generate, []

    def recording_encode(request: Request) -> Prompt:
        encoded[request.request_id].set()
        return encode(request)

    def waiting_generate(batch: Sequence[Request], *rest: Any) -> list[list[GeneratedSequence]]:
        batches.append([request.request_id for request in batch])
        if len(batches) == 1:
            others = [name for name in encoded if name not in batches[0]]
            assert any(encoded[name].wait(20) for name in others), "the next batch was not encoded while the model ran"
        return generate(batch, *rest)

    monkeypatch.setattr(answerer, "encode", recording_encode)
    monkeypatch.setattr(answerer, "generate", waiting_generate)
    answers = answerer.answer(requests, dataclasses.replace(GREEDY, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    monkeypatch.undo()
    assert_same(answers, answerer.answer(requests, dataclasses.replace(GREEDY, batch_size=2)))


def test_samples_depend_on_the_seed_and_are_not_all_the_same(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    first, again = answerer.answer(requests, SAMPLES), answerer.answer(requests, SAMPLES)
    assert first == again
    other = answerer.answer(requests, dataclasses.replace(SAMPLES, seed=1))
    assert [answer.candidates for answer in other] != [answer.candidates for answer in first]
    assert all(sum(candidate.count for candidate in answer.candidates) == SAMPLES.num_candidates for answer in first)
    assert any(len(answer.candidates) > 1 for answer in first)


def test_equal_questions_with_different_ids_get_different_samples(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    twin = dataclasses.replace(requests[0], request_id="twin")
    answer, other = answerer.answer([requests[0], twin], SAMPLES)
    assert [candidate.raw for candidate in answer.candidates] != [candidate.raw for candidate in other.candidates]


def test_samples_at_a_temperature_near_0_equal_the_greedy_answer(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    cold = answerer.answer(requests, dataclasses.replace(SAMPLES, temperature=1e-4))
    for answer, greedy in zip(cold, answerer.answer(requests, GREEDY), strict=True):
        assert [candidate.raw for candidate in answer.candidates] == [greedy.first.raw]
        assert answer.first.log_prob == pytest.approx(greedy.first.log_prob, abs=1e-4)


def test_log_probabilities_are_summed_over_all_tokens_including_the_end_token(
    model: VisionLanguageModel, processor: Processor, requests: list[Request]
) -> None:
    """They equal those of one forward pass over prompt and answer, without the temperature of the samples."""
    answerer = FamilyAnswerer(model, processor)
    prompt = answerer.encode(requests[0])
    batch = answerer.collate([prompt])
    for generated in answerer.generate([requests[0]], [prompt], SAMPLES)[0]:
        ids = torch.tensor([prompt.ids + list(generated.token_ids)])
        with torch.no_grad():
            logits = model(input_ids=ids, **batch.images).logits[0].log_softmax(-1)
        start = len(prompt.ids)
        expected = sum(float(logits[start + i - 1, token]) for i, token in enumerate(generated.token_ids))
        assert generated.log_prob == pytest.approx(expected, abs=1e-3)


def test_the_prompt_equals_that_of_training(answerer: FamilyAnswerer, processor: Processor, requests: list[Request]) -> None:
    for request in requests:
        encoded = processor.encode(request.messages, "red", len(request.images))
        assert encoded is not None
        ids = answerer.encode(request).ids
        assert encoded.input_ids[: len(ids)] == ids
        assert [label for label in encoded.labels if label != -100] == encoded.input_ids[len(ids) :]


def test_the_recorded_prompt_has_one_placeholder_per_image(model: VisionLanguageModel, processor: Processor) -> None:
    answerer = FamilyAnswerer(model, processor, PromptPolicy("Answer shortly.", None, True), {"path": "here"})
    (answer,) = answerer.answer([make_request("a", "What?", noise_image(1), noise_image(2))], GREEDY)
    assert "<image><image>\nWhat?\nAnswer shortly.<|im_end|>" in answer.prompt
    assert answerer.description.kind == "checkpoint"
    assert answerer.description.settings == {
        "path": "here", "short_answer_prompt": "Answer shortly.", "short_answer_prompt_zh": None, "clean_answers": True,
    }  # fmt: skip


@pytest.mark.parametrize("statement_form", ["sentence", "joined"])
def test_statements_and_replies_have_the_question_without_its_prompt(
    model: VisionLanguageModel, processor: Processor, statement_form: StatementForm
) -> None:
    clip, policy = RednessModel(), PromptPolicy("Answer shortly.")
    reranker = Reranker((ImageTextScorer("clip", clip, statement_form=statement_form),), RerankPlan(), judge=True)
    request = question_request("a", "What is it?", [noise_image(1)])
    [plain] = reply(FamilyAnswerer(model, processor), reranker, [request], BEAMS)
    of_plain, clip.read = clip.read, []
    [prompted] = reply(FamilyAnswerer(model, processor, policy), reranker, [request], BEAMS)
    assert "What is it?\nAnswer shortly.<|im_end|>" in prompted.answer.prompt
    assert "Answer shortly." not in plain.answer.prompt
    assert prompted.question == plain.question == "What is it?"
    assert clip.read and not any("shortly" in text for text in (*clip.read, *of_plain))


@pytest.mark.parametrize("decoding", [GREEDY, dataclasses.replace(SAMPLES, num_candidates=1, max_new_tokens=24)], ids=["greedy", "sample"])
def test_a_stream_adds_up_to_the_answer(answerer: FamilyAnswerer, requests: list[Request], decoding: DecodingConfig) -> None:
    for request, answer in zip(requests, answerer.answer(requests, decoding), strict=True):
        assert "".join(answerer.stream(request, decoding)) == answer.first.raw


def scripted(answerer: FamilyAnswerer, monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    """Make the model generate `ids`, whatever the prompt."""
    model = answerer.model
    forward: Callable[..., object] = type(model).forward

    def scripted_forward(self: object, input_ids: torch.Tensor, **kwargs: object) -> object:
        output: object = forward(self, input_ids=input_ids, **kwargs)
        step = 0 if input_ids.shape[1] > 1 else len(generated)
        generated[step:] = [ids[step]]
        output.logits[:] = 0  # type: ignore[attr-defined]
        output.logits[..., ids[step]] = 20  # type: ignore[attr-defined]
        return output

    generated: list[int] = []
    monkeypatch.setattr(type(model), "forward", scripted_forward)


def test_streamed_characters_are_never_incomplete(answerer: FamilyAnswerer, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "鼹鼠 🦔 两只\n\n ok"
    ids = processor.tokenizer.encode(f"  {text} \n\u3000", add_special_tokens=False)
    assert len(ids) > len(text), "these characters were meant to take several tokens each"
    scripted(answerer, monkeypatch, [*ids, processor.end_of_turn_id])
    pieces = list(answerer.stream(make_request("a", "Who?"), DecodingConfig(strategy="greedy", max_new_tokens=60)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[0] == "鼹"
    assert answerer.answer([make_request("a", "Who?")], DecodingConfig(strategy="greedy", max_new_tokens=60))[0].first.raw == text


def test_invalid_bytes_are_streamed_as_in_the_answer(
    answerer: FamilyAnswerer, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = processor.tokenizer.encode("鼹", add_special_tokens=False)[:1]
    scripted(answerer, monkeypatch, [*half, *processor.tokenizer.encode("a"), *half, processor.end_of_turn_id])
    pieces = list(answerer.stream(make_request("a", "Who?"), DecodingConfig(strategy="greedy", max_new_tokens=60)))
    assert "".join(pieces) == "\ufffda\ufffd"


def test_streaming_an_invalid_request_raises(answerer: FamilyAnswerer) -> None:
    with pytest.raises(EncodingError, match="placeholders for 1 images"):
        list(answerer.stream(Request("a", (noise_image(1),), (Message("user", "?"),)), GREEDY))


def test_eval_mode_disables_dropout_and_restores_the_mode_of_every_module(answerer: FamilyAnswerer) -> None:
    model = answerer.model
    model.train()
    model.model.vision_tower.eval()
    before = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    model.eval()


@pytest.mark.parametrize("decoding", [BEAMS, SAMPLES, GREEDY], ids=["beams", "samples", "greedy"])
def test_probabilities_that_are_not_finite_are_an_error_and_no_answer(
    answerer: FamilyAnswerer, requests: list[Request], decoding: DecodingConfig
) -> None:
    hook = answerer.model.lm_head.register_forward_hook(lambda _, __, logits: logits * torch.nan)
    try:
        answers = answerer.answer(requests, decoding)
    finally:
        hook.remove()
    assert {answer.error for answer in answers} == {"the model's probabilities are not finite numbers"}
    assert not any(answer.candidates for answer in answers)


def test_out_of_memory_names_the_settings_to_change(
    answerer: FamilyAnswerer, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("answering.systems.family_answerer.beam_search", full)
    with pytest.raises(TesseraError, match=r"lower decoding\.batch_size \(now 16\) or decoding\.num_candidates"):
        answerer.answer(requests, BEAMS)
    one_by_one = answerer.answer(requests, dataclasses.replace(BEAMS, batch_size=1))
    assert all("out of memory with 1 questions" in (answer.error or "") for answer in one_by_one)


def test_a_batch_without_images_has_no_image_tensors(answerer: FamilyAnswerer) -> None:
    batch = answerer.collate([answerer.encode(make_request("a", "Who?")), answerer.encode(make_request("b", "Who are you?"))])
    assert isinstance(batch, PromptBatch)
    assert batch.images == {}
    assert (batch.attention_mask[:, -1] == 1).all()
    assert batch.attention_mask[0, 0] == 0
    assert batch.position_ids[0].tolist()[-1] == int(batch.attention_mask[0].sum()) - 1


def test_images_in_memory_are_converted_to_rgb(answerer: FamilyAnswerer) -> None:
    grey = Image.new("L", (50, 50), 128)
    answer, other = answerer.answer([make_request("a", "What?", grey), make_request("b", "What?", grey.convert("RGB"))], GREEDY)
    assert answer.first.log_prob == pytest.approx(other.first.log_prob, abs=1e-5)
