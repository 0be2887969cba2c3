"""The sentence of a source that says how an answer is wanted, in the merged data."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dataset.build.json_export import export_json
from dataset.source_base import PromptByLanguage
from dataset.source_config import Source
from tests.dataset.raw_files import RawFiles, conversation

EN, ZH = "Answer the question using a single word or phrase.", "请用一个词或短语回答。"


def merged_prompts(raw: RawFiles, **settings: Any) -> list[str | None]:
    """The prompts of an English and a Chinese question of a source with these settings."""
    raw.image("a.jpg")
    questions = ("What?", "什么？")
    records = [{"id": i, "question": text, "answers": ["x"], "image_file": "a.jpg"} for i, text in enumerate(questions)]
    raw.merge(raw.vqa_metadata(records, **settings))
    samples = raw.samples()
    assert [sample.messages[0].content for sample in samples] == [f"<image>\n{text}" for text in questions]
    return [sample.prompt for sample in samples]


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({}, [EN, ZH]),
        ({"prompt": None}, [None, None]),
        ({"prompt": " "}, [None, None]),
        ({"prompt": " Briefly! "}, ["Briefly!", "Briefly!"]),
        ({"prompt": PromptByLanguage(zh=None)}, [EN, None]),
        ({"prompt": PromptByLanguage(en="Briefly!", zh="")}, ["Briefly!", None]),
    ],
)
def test_vqa_has_the_prompt_of_its_language(raw: RawFiles, settings: dict[str, Any], prompts: list[str | None]) -> None:
    assert merged_prompts(raw, **settings) == prompts


def test_captions_and_conversations_have_none_unless_their_source_says_so(raw: RawFiles) -> None:
    raw.image("a.jpg")
    captions = raw.ai_challenger([{"image_id": "a.jpg", "caption": ["猫"]}])
    chat = [conversation("a.jpg", "What?", "A cat.", "Sure?", "Yes.")]
    raw.merge(captions, raw.llava(chat, name="plain"), raw.llava(chat, name="brief", prompt="Briefly!"))
    caption, plain, brief = raw.samples()
    assert (caption.prompt, plain.prompt, brief.prompt) == (None, None, "Briefly!")
    assert [turn.content for turn in brief.prompted_messages] == ["<image>\nWhat?\nBriefly!", "A cat.", "Sure?\nBriefly!"]


def test_repeated_samples_have_the_prompt_too(raw: RawFiles) -> None:
    assert merged_prompts(raw) == [EN, ZH]
    raw.merge(raw.vqa_metadata([{"id": 1, "question": "What?", "answers": ["x"], "image_file": "a.jpg"}], repeat=3))
    assert [sample.prompt for sample in raw.samples()] == [EN] * 3


def test_the_json_files_have_the_prompts(raw: RawFiles) -> None:
    merged_prompts(raw, prompt=PromptByLanguage(zh=None))
    export_json(raw.merged, raw.folder / "json")
    english, chinese = json.loads((raw.folder / "json" / "annotations.json").read_text(encoding="utf-8"))
    assert english["prompt"] == EN
    assert english["turns"] == [{"question": "<image>\nWhat?", "answer": "x"}]
    assert "prompt" not in chinese


def test_another_prompt_merges_again(raw: RawFiles) -> None:
    merged_prompts(raw)
    assert merged_prompts(raw, prompt="Briefly!") == ["Briefly!"] * 2


def test_a_prompt_with_an_image_placeholder_is_an_error() -> None:
    raw = {"format": "vqa_metadata", "annotations": "a.json", "prompt": "In <image>?"}
    with pytest.raises(ValidationError, match="a prompt cannot contain <image>"):
        TypeAdapter(Source).validate_json(json.dumps(raw))
