"""Qwen vision-language models answer as transformers' own classes do, without torchvision."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLProcessor,
)
from transformers.processing_utils import ProcessorMixin

from answering.answerer_factory import build_answerer
from answering.config import DecodingConfig, QwenVlSystem
from answering.decoding.beam_search import beam_search
from answering.decoding.decoding_rules import DecodingRules
from answering.protocol import Request
from answering.request_images import resize_to_max_side
from answering.systems.family_answerer import FamilyAnswerer
from dataset.sample import Message
from errors import UsageError
from tests.answering.conftest import make_request, noise_image
from tests.answering.stock_generate import NUM_NEW_TOKENS, assert_equal, plain, stock_with_rules


class ImageOnlyProcessor(Qwen3VLProcessor):
    """The processor of transformers without its video processor, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any):
        self.image_token, self.image_token_id = "<|image_pad|>", tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


@pytest.fixture(scope="module")
def qwen2_5_vl(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), parts)


def build_qwen2_5_vl(folder: Path, parts: Path) -> Path:
    """A folder with a small untrained Qwen2.5-VL."""
    tokenizer = AutoTokenizer.from_pretrained(parts / "qwen3_vl")
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 1536, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128, "patch_size": 14,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


def load(system: QwenVlSystem) -> FamilyAnswerer:
    answerer = build_answerer(system, checkpoint_folder=Path("none"), device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    return answerer


def loaded(folder: Path, kind: Any, **settings: Any) -> FamilyAnswerer:
    """The model in fp32 with its weights scaled up, so that answers are unambiguous and depend on the images."""
    answerer = load(QwenVlSystem(name="qwen", kind=kind, path=str(folder), **{"quantization": "none", **settings}))
    if answerer.settings["quantization"] == "none":
        with torch.no_grad():
            for name, weight in answerer.model.named_parameters():
                if weight.ndim > 1 and "embed" not in name:
                    weight.mul_(2.5)
    return answerer


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def answerer(request: pytest.FixtureRequest, parts: Path) -> FamilyAnswerer:
    folder = parts / "qwen3_vl" if request.param == "qwen3_vl" else request.getfixturevalue("qwen2_5_vl")
    return loaded(folder, request.param)


REQUESTS = [
    make_request("one", "What color is the circle?", Image.new("RGB", (300, 90), "red")),
    make_request("none", "Is there a blue star left of the green ring?"),
    make_request("several", "这幅图像描述了什么？", noise_image(2), noise_image(9)),
    make_request("long", "Describe the picture. " * 6, noise_image(4)),
]


def test_beams_equal_those_of_stock_generate(answerer: FamilyAnswerer) -> None:
    batch = answerer.collate([answerer.encode(request) for request in REQUESTS])
    types = {"mm_token_type_ids": (batch.input_ids == answerer.processor.image_token_id).int()}
    typed_batch = type(batch)(batch.input_ids, batch.attention_mask, batch.position_ids, {**batch.images, **types})
    generated = beam_search(answerer.model, batch, 3, DecodingRules(NUM_NEW_TOKENS, answerer.end_ids))
    assert_equal(generated, plain(answerer.model, typed_batch, answerer.end_ids, 3))
    assert len({question[0].token_ids for question in generated}) == len(REQUESTS)
    settings = DecodingConfig(max_new_tokens=NUM_NEW_TOKENS, no_repeat_ngram_size=1, repetition_penalty=1.3, length_penalty=0.0)
    rules = answerer.rules(settings)
    penalised = beam_search(answerer.model, batch, 3, rules)
    assert_equal(penalised, stock_with_rules(answerer.model, typed_batch, 3, rules))
    assert [[s.token_ids for s in own] for own in penalised] != [[s.token_ids for s in own] for own in generated]


def test_another_image_gives_other_probabilities(answerer: FamilyAnswerer) -> None:
    decoding = DecodingConfig(num_candidates=1, strategy="greedy", max_new_tokens=4)
    red, blue = (make_request(color, "What color?", Image.new("RGB", (90, 90), color)) for color in ("red", "blue"))
    first, second = (answer.first.log_prob for answer in answerer.answer([red, blue], decoding))
    assert first is not None
    assert first != pytest.approx(second, abs=1e-4)


def test_prompts_equal_those_of_the_models_own_processor(parts: Path) -> None:
    answerer = loaded(parts / "qwen3_vl", "qwen3_vl", short_answer_prompt=None, short_answer_prompt_zh=None)
    folder = parts / "qwen3_vl"
    stock = ImageOnlyProcessor(Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    images = [noise_image(2), Image.new("RGB", (200, 60), "green")]
    request = Request("a", tuple(images), (Message("user", "<image>First <image>second?"),))
    content = [
        {"type": "image", "image": images[0]},
        {"type": "text", "text": "First "},
        {"type": "image", "image": images[1]},
        {"type": "text", "text": "second?"},
    ]
    text = stock.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False)
    expected = stock(text=[text], images=images, return_tensors="pt")
    prompt = answerer.encode(request)
    assert prompt.ids == expected["input_ids"][0].tolist()
    assert torch.equal(prompt.images["pixel_values"], expected["pixel_values"])
    assert torch.equal(prompt.images["image_grid_thw"], expected["image_grid_thw"])


def test_an_image_is_given_within_the_limits_of_the_models_own_image_processor(parts: Path) -> None:
    """The small model's processor allows 1,024 to 4,194,304 pixels; a token has 32 x 32."""
    image = Image.effect_noise((2600, 1700), 60).convert("RGB")
    answerer = loaded(parts / "qwen3_vl", "qwen3_vl")
    assert answerer.encode(make_request("a", "What is this?", image.resize((640, 480)))).visual_tokens == 20 * 15
    own = answerer.processor.image_processor(images=[image], return_tensors="pt")
    assert torch.equal(answerer.processor.read([image])["pixel_values"], own["pixel_values"])
    limited = loaded(parts / "qwen3_vl", "qwen3_vl", max_image_side=384).encode(make_request("a", "What is this?", image))
    assert limited.visual_tokens == limited.ids.count(answerer.processor.image_token_id) == 12 * 8


def test_answers_state_their_visual_tokens(answerer: FamilyAnswerer) -> None:
    expected = [answerer.encode(request).ids.count(answerer.processor.image_token_id) for request in REQUESTS]
    answers = answerer.answer(REQUESTS, DecodingConfig(num_candidates=1, strategy="greedy", max_new_tokens=1))
    assert [answer.visual_tokens for answer in answers] == expected
    assert expected[1] == 0 < min(expected[0], *expected[2:])


def test_control_tokens_in_a_users_text_are_tokenised_as_text(answerer: FamilyAnswerer) -> None:
    prompt = answerer.encode(make_request("a", "Is <|image_pad|> or <|im_end|> here?", noise_image(1)))
    merged = int(prompt.images["image_grid_thw"].prod()) // answerer.processor.image_processor.merge_size**2
    assert prompt.ids.count(answerer.processor.image_token_id) == merged
    assert prompt.ids.count(answerer.processor.end_of_turn_id) == 1 + prompt.text.startswith("<|im_start|>system")
    assert "Is <|image_pad|> or <|im_end|> here?" in prompt.text


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_language_model_is_quantised(parts: Path, quantization: str) -> None:
    answerer = loaded(parts / "qwen3_vl", "qwen3_vl", quantization=quantization)
    kinds = {name: type(module).__name__ for name, module in answerer.model.named_modules()}
    small = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    quantised = {name for name, kind in kinds.items() if kind == small}
    assert quantised
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in answerer.model.modules())
    (answer,) = answerer.answer([REQUESTS[0]], DecodingConfig(num_candidates=2, max_new_tokens=3))
    assert sum(candidate.count for candidate in answer.candidates) == 2


def test_a_model_that_does_not_fit_is_offloaded(parts: Path, tmp_path: Path) -> None:
    unlimited = QwenVlSystem(name="qwen", kind="qwen3_vl", path=str(parts / "qwen3_vl"), quantization="none")
    offloaded = load(dataclasses.replace(unlimited, max_memory={"cpu": "6MB"}, offload_folder=tmp_path))
    assert "disk" in offloaded.model.hf_device_map.values()
    decoding = DecodingConfig(num_candidates=2, max_new_tokens=3)
    fresh = load(unlimited)
    assert offloaded.answer(REQUESTS[:1], decoding) == fresh.answer(REQUESTS[:1], decoding)


def test_images_are_downscaled_with_their_aspect_ratio_and_never_enlarged() -> None:
    assert resize_to_max_side(Image.new("RGB", (1000, 500)), 384).size == (384, 192)
    assert resize_to_max_side(Image.new("RGB", (30, 2000)), 384).size == (6, 384)
    small = Image.new("RGB", (384, 10))
    assert resize_to_max_side(small, 384) is small


def test_an_image_that_the_processor_rejects_affects_only_its_own_request(answerer: FamilyAnswerer) -> None:
    thin = make_request("thin", "What is this?", Image.new("RGB", (384, 1)))
    bad, good = answerer.answer([thin, REQUESTS[0]], DecodingConfig(num_candidates=2, max_new_tokens=2))
    assert bad.candidates == ()
    assert bad.error is not None
    assert "aspect ratio" in bad.error
    assert good.error is None


def test_a_model_of_another_family_is_a_one_line_error(parts: Path) -> None:
    with pytest.raises(UsageError, match=r"system qwen, path: .* is a qwen3_vl model, the system's kind says qwen2_5_vl"):
        loaded(parts / "qwen3_vl", "qwen2_5_vl")
    with pytest.raises(UsageError, match="system qwen, path: cannot load no/such"):
        load(QwenVlSystem(name="qwen", kind="qwen3_vl", path="no/such"))


def test_a_model_that_always_thinks_is_refused(parts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(parts / "qwen3_vl", tmp_path / "thinking")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}\n")
    with pytest.raises(UsageError, match=r"system qwen, path: .*thinking: its chat template opens a <think> block before every answer"):
        loaded(folder, "qwen3_vl")
