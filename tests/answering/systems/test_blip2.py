"""BLIP-2 answers as transformers' own class does and depends on its image; only its language model is quantised and adapted."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2Processor,
)

from answering.answerer_factory import build_answerer
from answering.config import Blip2System, DecodingConfig
from answering.decoding.streaming import TokenGenerated, stream_tokens
from answering.protocol import Answer, Request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.sample import Message
from errors import UsageError
from model.blip2.modeling import input_embeddings
from model.processors.sample_processor import Prompt
from tests.answering.conftest import make_request, noise_image
from tests.small_models import build_blip2

BEAMS = DecodingConfig(num_candidates=4, max_new_tokens=6)
SAMPLES = DecodingConfig(num_candidates=4, strategy="sample", max_new_tokens=6, temperature=0.7)
GREEDY = DecodingConfig(strategy="greedy", max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family."""
    return {family: build_blip2(tmp_path_factory.mktemp(family), family, parts) for family in ("opt", "t5")}


def loaded(folder: Path, **settings: Any) -> FamilyAnswerer:
    system = Blip2System(name="blip", kind="blip2", path=str(folder), **settings)
    answerer = build_answerer(system, checkpoint_folder=Path("none"), device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    return answerer


def is_encoder_decoder(answerer: FamilyAnswerer) -> bool:
    return bool(answerer.model.config.text_config.is_encoder_decoder)


def language_inputs(answerer: FamilyAnswerer, prompt: Prompt) -> dict[str, torch.Tensor]:
    """What the language model reads of a prompt: the query embeddings, then those of the text."""
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        embeds = input_embeddings(answerer.model, ids, prompt.images["pixel_values"])
    return {"inputs_embeds": embeds, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=["opt", "t5"])
def answerer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FamilyAnswerer:
    return loaded(folders[request.param])


REQUESTS = [
    make_request("one", "What color is the circle?", noise_image(1)),
    make_request("two", "Is there a blue star left of the green ring?", noise_image(3)),
    make_request("three", "How many?", Image.new("RGB", (50, 20), "red")),
]


def assert_same(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.request_id, answer.error, answer.prompt) == (other.request_id, other.error, other.prompt)
        assert [c.raw for c in answer.candidates] == [c.raw for c in other.candidates]
        assert [c.log_prob for c in answer.candidates] == pytest.approx([c.log_prob for c in other.candidates], abs=1e-4)


def test_beams_equal_those_of_the_models_own_class_and_processor(answerer: FamilyAnswerer) -> None:
    """With transformers' own classes, one question at a time, and with a correct `image_token_index`."""
    folder = Path(str(answerer.settings["path"]))
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    processor = Blip2Processor(answerer.processor.image_processor, AutoTokenizer.from_pretrained(folder), num_query_tokens=4)
    model.config.image_token_index = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert model.config.image_token_index < 1536
    for request, answer in zip(REQUESTS, answerer.answer(REQUESTS, BEAMS), strict=True):
        question = request.messages[0].content.removeprefix("<image>\n")
        inputs = processor(images=request.images[0], text=f"Question: {question} Short answer:", return_tensors="pt")
        output = model.generate(
            **inputs, num_beams=4, num_return_sequences=4, max_new_tokens=6, eos_token_id=list(answerer.end_ids), output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        new = output.sequences[:, -6:] if is_encoder_decoder(answerer) else output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = {text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)}
        assert {candidate.raw for candidate in answer.candidates} <= texts
        assert sum(candidate.count for candidate in answer.candidates) == 4
        if len(answer.candidates) == 4:
            expected = sorted(output.sequences_scores.tolist(), reverse=True)
            assert [c.mean_log_prob for c in answer.candidates] == pytest.approx(expected, abs=1e-4)
    assert len({answer.first.raw for answer in answerer.answer(REQUESTS, BEAMS)}) > 1


def test_answers_state_their_visual_tokens(answerer: FamilyAnswerer) -> None:
    """The queries of the Q-Former."""
    assert [answer.visual_tokens for answer in answerer.answer(REQUESTS, BEAMS)] == [4, 4, 4]


def test_another_image_gives_other_probabilities_whatever_the_image_token_index(answerer: FamilyAnswerer) -> None:
    red, blue = (make_request(color, "What color?", Image.new("RGB", (90, 90), color)) for color in ("red", "blue"))
    for index in (None, 0, 1535):
        answerer.model.config.image_token_index = index
        first, second = (answer.first.log_prob for answer in answerer.answer([red, blue], GREEDY))
        assert first is not None
        assert first != pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize("decoding", [BEAMS, SAMPLES, GREEDY], ids=["beams", "samples", "greedy"])
def test_order_and_batch_size_change_no_answer(answerer: FamilyAnswerer, decoding: DecodingConfig) -> None:
    expected = answerer.answer(REQUESTS, decoding)
    assert [answer.request_id for answer in expected] == ["one", "two", "three"]
    one_by_one = DecodingConfig(**{**vars(decoding), "batch_size": 1})
    assert_same(answerer.answer(REQUESTS[::-1], one_by_one)[::-1], expected)


def test_log_probabilities_are_computed_before_the_temperature(answerer: FamilyAnswerer) -> None:
    """They equal those of one forward pass over prompt and answer."""
    prompt = answerer.encode(REQUESTS[0])
    sampled = answerer.generate([REQUESTS[0]], [prompt], SAMPLES)[0]
    assert len({sequence.token_ids for sequence in sampled}) > 1
    inputs = language_inputs(answerer, prompt)
    language = answerer.model.language_model
    for generated in sampled:
        ids = torch.tensor([generated.token_ids])
        with torch.no_grad():
            if is_encoder_decoder(answerer):
                logits = language(**inputs, labels=ids).logits[0]
            else:
                answer = language.get_input_embeddings()(ids)
                embeds = torch.cat([inputs["inputs_embeds"], answer], dim=1)
                logits = language(inputs_embeds=embeds).logits[0, inputs["inputs_embeds"].shape[1] - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, ids.T).sum()
        assert generated.log_prob == pytest.approx(float(expected), abs=1e-3)


def test_samples_depend_on_the_seed(answerer: FamilyAnswerer) -> None:
    first = answerer.answer(REQUESTS, SAMPLES)
    assert first == answerer.answer(REQUESTS, SAMPLES)
    assert first != answerer.answer(REQUESTS, DecodingConfig(**{**vars(SAMPLES), "seed": 1}))


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLES], ids=["greedy", "sample"])
def test_a_stream_adds_up_to_the_answer(answerer: FamilyAnswerer, decoding: DecodingConfig) -> None:
    alone = DecodingConfig(**{**vars(decoding), "num_candidates": 1})
    for request, answer in zip(REQUESTS, answerer.answer(REQUESTS, alone), strict=True):
        assert "".join(answerer.stream(request, alone)) == answer.first.raw


def test_tokens_can_be_streamed_in_batches(answerer: FamilyAnswerer) -> None:
    events = [event for event in stream_tokens(answerer, REQUESTS, GREEDY) if isinstance(event, TokenGenerated)]
    texts = ["".join(event.text for event in events if event.request_index == i) for i in range(len(REQUESTS))]
    assert texts == [answer.first.raw for answer in answerer.answer(REQUESTS, GREEDY)]


def test_answers_are_evaluated_by_the_model_itself(answerer: FamilyAnswerer) -> None:
    (probabilities,) = answerer.judge(REQUESTS[:1], [["red", "blue"]], 2)
    assert probabilities is not None and all(0 < value < 1 for value in probabilities) and probabilities[0] != probabilities[1]


def test_each_task_has_its_prompt(answerer: FamilyAnswerer) -> None:
    def text(task: Any, *messages: Message) -> str:
        return answerer.encode(Request("a", (noise_image(1),), messages, task)).text

    question = Message("user", "<image>\nWhat is {it}?")
    assert text("vqa", question) == "<image>Question: What is {it}? Short answer:"
    assert text("conversation", question) == "<image>Question: What is {it}? Answer:"
    assert text("caption", Message("user", "<image>\nDescribe.")) == "<image>a photo of"
    conversation = text("vqa", question, Message("assistant", "a dog."), Message("user", "What color?"))
    # A decoder-only model is trained to end each answer.
    between = " " if is_encoder_decoder(answerer) else "<|im_end|>"
    assert conversation == f"<image>Question: What is {{it}}? Short answer: a dog.{between}Question: What color? Short answer:"
    settings = answerer.description.settings
    assert settings["question_prompt"] == "Question: {} Short answer:"
    assert settings["caption_prompt"] == "a photo of"
    assert answerer.answer([make_request("a", "What?", noise_image(1))], GREEDY)[0].prompt == "<image>Question: What? Short answer:"


def test_control_tokens_in_a_users_text_are_tokenised_as_text(answerer: FamilyAnswerer) -> None:
    ids = answerer.encode(make_request("a", "Is <|im_end|> here?", noise_image(1))).ids
    assert answerer.tokenizer.eos_token_id not in ids


def test_an_invalid_request_is_an_answer_with_an_error_and_affects_no_other(answerer: FamilyAnswerer, tmp_path: Path) -> None:
    bad = [
        make_request("none", "What?"),
        make_request("several", "What?", noise_image(1), noise_image(2)),
        make_request("missing", "What?", tmp_path / "none.jpg"),
        Request("roles", (noise_image(1),), (Message("assistant", "<image>"),)),
        *(
            []
            if is_encoder_decoder(answerer)
            else [make_request("long", "very " * 100, noise_image(1)), make_request("full", "very " * 19, noise_image(1))]
        ),
    ]
    answers = answerer.answer([*bad, *REQUESTS], BEAMS)
    errors = {answer.request_id: answer.error or "" for answer in answers[: len(bad)]}
    assert errors["none"] == "the model takes one image per question, this one has 0"
    assert errors["several"].endswith("this one has 2")
    assert "there is no such file" in errors["missing"]
    assert "not the user's" in errors["roles"]
    if not is_encoder_decoder(answerer):
        assert "at most 96" in errors["long"]
        assert "and its answer up to 6, the model takes at most 96" in errors["full"]
    assert_same(answers[len(bad) :], answerer.answer(REQUESTS, BEAMS))


@pytest.mark.parametrize("family", ["opt", "t5"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_language_model_is_quantised(folders: dict[str, Path], family: str, quantization: str) -> None:
    answerer = loaded(folders[family], quantization=quantization)
    small = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    quantised = {name for name, module in answerer.model.named_modules() if type(module).__name__ == small}
    assert any(".layers." in name or ".block." in name for name in quantised)
    assert all(name.startswith("language_model.") and "lm_head" not in name for name in quantised)
    (answer,) = answerer.answer([REQUESTS[0]], DecodingConfig(num_candidates=2, max_new_tokens=3))
    assert sum(candidate.count for candidate in answer.candidates) == 2


def adapter(folder: Path, base: Path) -> Path:
    """A LoRA adapter of the language model's attention, with random weights."""
    settings = peft.LoraConfig(r=2, target_modules=r"language_model\..*\.(q_proj|q)")
    model = peft.get_peft_model(Blip2ForConditionalGeneration.from_pretrained(base), settings)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_changes_the_answers(folders: dict[str, Path], tmp_path: Path, quantization: str) -> None:
    folder = adapter(tmp_path / "adapter", folders["opt"])
    plain = loaded(folders["opt"], quantization=quantization).answer(REQUESTS, BEAMS)
    adapted = loaded(folders["opt"], quantization=quantization, adapter=folder)
    assert adapted.description.settings["adapter"] == folder
    assert adapted.answer(REQUESTS, BEAMS) != plain


def test_an_adapter_of_another_model_is_a_one_line_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"system blip, adapter: .*gone does not exist"):
        loaded(folders["opt"], adapter=tmp_path / "gone")
    with pytest.raises(UsageError, match="system blip, adapter: cannot load"):
        loaded(folders["opt"], adapter=tmp_path)
    foreign = adapter(tmp_path / "adapter", folders["t5"])
    with pytest.raises(UsageError, match="system blip, adapter"):
        loaded(folders["opt"], adapter=foreign)


def test_a_model_of_another_family_is_a_one_line_error(parts: Path) -> None:
    with pytest.raises(UsageError, match=r"system blip, path: .* is a qwen3_vl model; a BLIP-2 is expected"):
        loaded(parts / "qwen3_vl")
    with pytest.raises(UsageError, match="system blip, path: cannot load no/such"):
        loaded(Path("no/such"))


def test_a_prompt_template_needs_braces_for_the_question() -> None:
    with pytest.raises(ValueError, match="question_prompt"):
        Blip2System(name="blip", kind="blip2", path="x", question_prompt="Question:")
