"""Exporting a checkpoint: logits, prompts and model card of the exported model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from answering.answerer_factory import build_answerer
from answering.config import CheckpointSystem
from answering.protocol import Decoding
from answering.reply import question_request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts
from errors import TesseraError, UsageError
from model.checkpoint_manifest import write_manifest
from model.family_config import ParamGroup
from model.hub import llava_export
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.config import ConnectorConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build, repeats_images_by_sample, stock_supports_final_norm
from tests.model.hub.card_example import load_example
from tests.model.siglip_qwen.test_modeling import with_labels
from tests.model.test_lora import train

Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]
Exported = Callable[..., tuple[Path, Any]]

GREEDY = Decoding(num_candidates=1, strategy="greedy", max_new_tokens=64)
IMAGES = [Image.effect_noise((120, 80), 90).convert("RGB"), Image.new("RGB", (50, 70), "red")]

CONVERSATIONS = {
    "an image": [Message("user", "<image>\nWhat color is the circle?")],
    "an image last": [Message("user", "What is this?\n<image>")],
    "two images": [Message("user", "<image>\n<image>\nwhich one is red?")],
    "an image between texts": [Message("user", "What is red in\n<image>\nand is round?")],
    "no image": [Message("user", "How many?\nTwo or three?")],
    "Chinese": [Message("user", "<image>\n这幅图像描述了什么？")],
    "several turns": [Message("user", "<image>\nWhat?"), Message("assistant", "a circle"), Message("user", "What color?")],
    "a system message": [Message("system", "Be short."), Message("user", "<image>\nWhat?")],
}


@pytest.fixture
def exported(make: Build, settings: Settings, batch: Batch, processor: Processor, tmp_path: Path) -> Exported:
    """Trains for three steps, saves and exports; returns the exported folder and the trained model."""

    def run(
        export_format: llava_export.ExportFormat, groups: tuple[ParamGroup, ...] = ("connector", "lora"), **changes: Any
    ) -> tuple[Path, Any]:
        model = configure_trainable(make(**changes), settings(**changes), groups)
        train(model, with_labels(batch(1, 2)), steps=3)
        checkpoint.save(model, tmp_path / "checkpoint")
        write_manifest(tmp_path / "checkpoint")
        llava_export.export(tmp_path / "checkpoint", tmp_path / "out", export_format, processor)
        return tmp_path / "out", model

    return run


def as_parts(message: Message) -> dict[str, Any]:
    """A message in the content format of transformers' processors: a part for each image, and for each text without blank space."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(message.content.split(IMAGE_PLACEHOLDER)):
        if i:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return {"role": message.role, "content": parts}


@pytest.mark.parametrize("groups", [("connector",), ("connector", "lora"), ("connector", "language")])
def test_stock_transformers_gives_the_same_logits_and_answers(exported: Exported, batch: Batch, groups: tuple[ParamGroup, ...]) -> None:
    out, model = exported("llava", groups)
    stock = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    assert type(stock) is LlavaForConditionalGeneration
    inputs = batch(2, 1, pad="left")
    with torch.no_grad():
        difference = (stock(**inputs).logits - model(**inputs).logits)[inputs["attention_mask"].bool()].abs().max()
    assert difference < 1e-5
    if not repeats_images_by_sample(stock, inputs):
        inputs = batch(1, 1, pad="left")
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    assert torch.equal(stock.generate(**inputs, **options), model.generate(**inputs, **options))


def test_the_cards_example_gives_our_greedy_answers(exported: Exported, processor: Processor, tmp_path: Path) -> None:
    out, model = exported("llava")
    ask, ours = load_example(out), FamilyAnswerer(model, processor)
    answers = set()
    for i, question in enumerate(("What color is the circle?", "这幅图像描述了什么？", "How many\ncircles?")):
        IMAGES[i % 2].save(tmp_path / f"{i}.png")
        answer = ours.answer([question_request("q", question, [tmp_path / f"{i}.png"])], GREEDY)[0].first.text
        assert ask(tmp_path / f"{i}.png", question).strip() == answer
        answers.add(answer)
    assert len(answers) > 1, "the answers depend on what is asked"


@pytest.mark.parametrize(
    "changes",
    [{"vision_feature_layer": 0}, {"vision_feature_layer": -1}, {"quantization": "nf4"}, {"vision_feature_layer": "last_hidden_state"}],
)
def test_other_settings_are_exported_with_the_same_logits(
    exported: Exported, batch: Batch, model: VisionLanguageModel, changes: dict[str, Any], tmp_path: Path
) -> None:
    if changes == {"vision_feature_layer": "last_hidden_state"} and not stock_supports_final_norm(model):
        with pytest.raises(TesseraError, match=r"gives other logits than Tessera .* nothing was written"):
            exported("llava", **changes)
        assert not (tmp_path / "out").exists()
        return
    out, _ = exported("llava", **changes)
    stock, inputs = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32), batch(1)
    ours = checkpoint.merge(tmp_path / "checkpoint")
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=0)


def test_a_qwen2_is_exported_with_an_untied_lm_head(exported: Exported, batch: Batch, qwen2: Path) -> None:
    out, model = exported("llava", language=str(qwen2))
    stock, inputs = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32), batch(1)
    assert stock.lm_head.weight is not stock.get_input_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(stock(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("system_prompt", [None, "你是一个助手。"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_exported_template_renders_the_prompts_of_training(
    model: Any, processor: Processor, tmp_path: Path, name: str, system_prompt: str | None
) -> None:
    processor.save(tmp_path / "ours")
    ours = Processor.load(tmp_path / "ours")
    ours.system_prompt = system_prompt
    llava_export.llava_processor(ours, model).save_pretrained(tmp_path / "llava")
    stock = AutoProcessor.from_pretrained(tmp_path / "llava", backend="pil")
    conversation = CONVERSATIONS[name]
    images = IMAGES[: sum(message.content.count(IMAGE_PLACEHOLDER) for message in conversation)]
    prompt = stock.apply_chat_template([as_parts(message) for message in conversation], add_generation_prompt=True)
    inputs = stock(text=prompt, images=images or None, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ours.prompt(conversation, len(images))
    if images:
        assert torch.equal(inputs["pixel_values"], ours.normalize(ours.read(images))["pixel_values"])


def test_content_as_a_string_renders_the_same_prompt(model: Any, processor: Processor) -> None:
    stock = llava_export.llava_processor(processor, model)
    parts, plain = ([{"role": "user", "content": content}] for content in ([{"type": "text", "text": "How many?"}], "How many?"))
    texts = [stock.apply_chat_template(messages, add_generation_prompt=True) for messages in (parts, plain)]
    assert texts[0] == texts[1]


def test_programs_see_that_the_exported_template_takes_parts(processor: Processor) -> None:
    tree = jinja2.Environment().parse(processor.template_parts.template("<image>"))
    assert not list(tree.find_all(jinja2.nodes.Macro))
    loops = [loop.iter for loop in tree.find_all(jinja2.nodes.For)]
    assert [node.attr for node in loops if isinstance(node, jinja2.nodes.Getattr)] == ["content"]


@pytest.mark.parametrize(
    ("prompts", "question"),
    [
        ({}, "What is this?"),
        ({"vqa": {"en": "One word!", "zh": "一个词。"}}, "What is this?\\nOne word!"),
        ({"vqa": {"zh": "一个词。"}}, "这是什么？\\n一个词。"),
    ],
)
@pytest.mark.parametrize("export_format", ["llava", "merged"])
def test_an_export_is_asked_with_the_prompts_of_training(
    make: Build, settings: Settings, processor: Processor, tmp_path: Path, export_format: Any, prompts: Prompts, question: str
) -> None:
    processor.save(tmp_path / "processor")
    ours = Processor.load(tmp_path / "processor")
    ours.prompts = prompts
    checkpoint.save(configure_trainable(make(), settings(), ["connector"]), tmp_path / "c")
    write_manifest(tmp_path / "c")
    llava_export.export(tmp_path / "c", tmp_path / "out", export_format, ours)
    system = CheckpointSystem(name="exported", kind="checkpoint", path=str(tmp_path / "out"))
    answerer = build_answerer(system, checkpoint_folder=tmp_path)
    assert isinstance(answerer, FamilyAnswerer)
    asked = answerer.encode(question_request("q", "What is this?", IMAGES[:1])).text
    assert ("What is this?\nOne word!" in asked) == ("en" in prompts.get("vqa", {}))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (f'question = "image.jpg", "{question}"' in card) == (export_format == "llava")
    assert all(f"short-answer questions ({language}): `{text}`" in card for language, text in prompts.get("vqa", {}).items())
    assert ("In training a sentence" in card) == bool(prompts)


def test_export_does_not_change_the_given_processor(model: Any, processor: Processor) -> None:
    before = processor.tokenizer.chat_template
    llava_export.llava_processor(processor, model)
    assert processor.tokenizer.chat_template == before


def test_the_generation_config_has_end_tokens_and_no_sampling_settings(exported: Exported) -> None:
    out, model = exported("llava")
    generation_config = GenerationConfig.from_pretrained(out)
    assert generation_config.eos_token_id == model.generation_config.eos_token_id
    assert not {"temperature", "top_k", "top_p", "repetition_penalty"} & generation_config.to_diff_dict().keys()


def test_the_merged_format_is_loaded_by_checkpoint_load(exported: Exported, batch: Batch, processor: Processor) -> None:
    out, model = exported("merged")
    loaded: nn.Module = checkpoint.load(out)
    inputs = batch(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    assert Processor.load(out).image_token == processor.image_token


def test_the_merged_format_supports_pooling(make: Build, settings: Settings, processor: Processor, tmp_path: Path) -> None:
    changes = {"connector": ConnectorConfig(kind="mlp_pool", pool=2)}
    model = configure_trainable(make(**changes), settings(**changes), ["connector"])
    checkpoint.save(model, tmp_path / "c")
    write_manifest(tmp_path / "c")
    llava_export.export(tmp_path / "c", tmp_path / "out", "merged", processor)
    ids = torch.tensor([[300, *[processor.image_token_id] * 9, 301]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 96, 96)}
    torch.testing.assert_close(checkpoint.load(tmp_path / "out")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connector": ConnectorConfig(kind="mlp_pool", pool=2)}, r"model\.connector\.kind is mlp_pool"),
        ({"drop_first_patch": True}, r"model\.drop_first_patch is true"),
        ({"connector": ConnectorConfig(keep_ratio=0.5)}, r"model\.connector\.keep_ratio is 0\.5"),
    ],
)
def test_a_setting_that_llava_cannot_express_is_named(
    tmp_path: Path, settings: Settings, make: Build, changes: dict[str, Any], message: str, processor: Processor
) -> None:
    checkpoint.save(configure_trainable(make(**changes), settings(**changes), ["connector"]), tmp_path / "c")
    write_manifest(tmp_path / "c")
    with pytest.raises(UsageError, match=message):
        llava_export.export(tmp_path / "c", tmp_path / "out", "llava", processor)
    assert not (tmp_path / "out").exists()


def test_a_feature_layer_that_other_runtimes_read_differently_gives_a_warning(settings: Settings) -> None:
    assert llava_export.check_llava_compatible(settings()) == []
    assert "tie_last_hidden_states" in llava_export.check_llava_compatible(settings(vision_feature_layer="last_hidden_state"))[0]


def test_nothing_is_written_when_stock_transformers_gives_other_logits(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = llava_export.to_llava

    def shifted(model: Any) -> Any:
        llava = original(model)
        llava.config.vision_feature_layer = -3
        return llava

    monkeypatch.setattr(llava_export, "to_llava", shifted)
    with pytest.raises(TesseraError, match="gives other logits than Tessera"):
        exported("llava")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_not_empty_is_not_replaced(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"--out .* exists already"):
        llava_export.export(tmp_path / "c", tmp_path, "merged", processor)
    assert (tmp_path / "thesis.txt").exists()


def test_bf16_weights_take_half_the_bytes(make: Build, settings: Settings, processor: Processor, tmp_path: Path) -> None:
    checkpoint.save(configure_trainable(make(), settings(), ["connector"]), tmp_path / "c")
    write_manifest(tmp_path / "c")
    for dtype in (torch.float32, torch.bfloat16):
        llava_export.export(tmp_path / "c", tmp_path / str(dtype), "llava", processor, dtype=dtype)
    sizes = [(tmp_path / str(dtype) / "model.safetensors").stat().st_size for dtype in (torch.float32, torch.bfloat16)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "torch.bfloat16").dtype == torch.bfloat16


def test_the_model_card_has_base_models_licences_settings_and_data(
    make: Build, settings: Settings, processor: Processor, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stock_supports_final_norm(make()):
        # Export would reject the feature layer; only the model card is tested here.
        monkeypatch.setattr(llava_export, "check_same_logits", lambda *_: None)
    language = tmp_path / "qwen"
    language.mkdir()
    for path in (parts / "qwen3").iterdir():
        (language / path.name).write_bytes(path.read_bytes())
    (language / "README.md").write_text("---\nlicense: mit\n---\n# Qwen\n")
    changes = {"language": str(language), "vision_feature_layer": "last_hidden_state"}
    checkpoint.save(configure_trainable(make(**changes), settings(**changes), ["connector"]), tmp_path / "c")
    write_manifest(tmp_path / "c")
    llava_export.export(tmp_path / "c", tmp_path / "out", "llava", processor, data_report="coco  12 kept")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        f"`{language}`, licence: mit",
        f"`{parts / 'siglip'}`, licence: see",
        "coco  12 kept",
        "feature_layer: last_hidden",
        "Note",
    ):
        assert text in card
