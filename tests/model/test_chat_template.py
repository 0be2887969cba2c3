"""Extracting the control text of a chat template, and the Jinja template built from it."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pytest

from dataset.sample import Message
from errors import UsageError
from model.processors.chat_template import chat_template_parts, check_answers_follow
from model.siglip_qwen.processor import Processor


@dataclass
class FakeTokenizer:
    """Renders messages with `render`; `<end>` is its only control token."""

    render: Any
    added_tokens_decoder: dict[int, str] = field(default_factory=lambda: {7: "<end>"})

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return str(self.render(messages))

    def encode(self, text: str, **_: Any) -> list[int]:
        return [7] if text.startswith("<end>") else [1]

    def convert_ids_to_tokens(self, token: int) -> str:
        return "<end>" if token == 7 else "x"


def test_a_default_system_message_belongs_to_the_opening() -> None:
    def qwen2(messages: list[dict[str, str]]) -> str:
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": "You are helpful."}, *messages]
        return "".join(f"[{m['role']}]{m['content']}<end>" for m in messages) + "[assistant]"

    template_parts = chat_template_parts(FakeTokenizer(qwen2))
    assert template_parts.opening == "[system]You are helpful.<end>[user]"
    assert (template_parts.system_open, template_parts.system_close) == ("[system]", "<end>[user]")
    assert (template_parts.header, template_parts.end, template_parts.next_user) == ("<end>[assistant]", "<end>", "[user]")


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (lambda messages: messages[-1]["content"], "leaves out"),
        (lambda messages: "".join(f"{m['role']}: {m['content']} / " for m in messages), "not with a control token"),
    ],
)
def test_a_template_that_is_not_like_chatml_is_an_error(render: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chat_template_parts(FakeTokenizer(render))


@pytest.mark.parametrize("with_system", [False, True])
def test_the_exported_template_renders_the_processors_prompt(processor: Processor, with_system: bool) -> None:
    messages = [
        Message("user", 'A "quoted"\n<image>\n{{ brace }}'),
        Message("assistant", " 两个 \n"),
        Message("user", "And\n<image>"),
    ]
    plain: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": 'A "quoted" '}, {"type": "image"}, {"type": "text", "text": " {{ brace }}"}]},
        {"role": "assistant", "content": " 两个 \n"},
        {"role": "user", "content": " And\n<image>"},
    ]
    if with_system:
        messages.insert(0, Message("system", "Be brief."))
        plain.insert(0, {"role": "system", "content": "Be brief."})
    template = jinja2.Environment(autoescape=False).from_string(processor.template_parts.template("<image>"))
    rendered = template.render(messages=plain, add_generation_prompt=True)
    assert rendered == processor.readable(processor.prompt(messages, 2))


TURNS = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and loop.last %}{{ $finished }}{% endif %}{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% if enable_thinking is false %}{{ $off }}{% endif %}{{ $always }}{% endif -%}
"""
EMPTY = "<think>\n\n</think>\n\n"


def chat_template(finished: str = "", off: str = "", always: str = "") -> str:
    """A ChatML template.

    Args:
        finished: text before the last answer of a conversation.
        off: text at the end of the generation prompt, with thinking off.
        always: text at the end of every generation prompt.
    """
    template = TURNS
    for name, text in (("finished", finished), ("off", off), ("always", always)):
        template = template.replace(f"${name}", json.dumps(text))
    return template


def with_template(processor: Processor, template: str) -> Any:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("texts", [{}, {"off": EMPTY}, {"off": EMPTY, "finished": EMPTY}, {"finished": EMPTY}], ids=str)
def test_an_answer_may_follow_an_empty_block_or_none(processor: Processor, texts: dict[str, str]) -> None:
    check_answers_follow(with_template(processor, chat_template(**texts)), "here")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"always": "<think>\n", "finished": EMPTY}, "here: its chat template opens a <think> block before every answer"),
        ({"always": "<think>\n"}, "opens a <think> block"),
        ({"off": "<think>\n\n</think>\n<answer>"}, "opens a <answer> block"),
        ({"always": "Sure: "}, r"begins an answer that is asked for with '.*Sure: '"),
        ({"finished": "Sure: "}, r"but one in a conversation with '.*Sure: '"),
    ],
)
def test_a_template_that_begins_answers_in_two_ways_is_an_error(processor: Processor, texts: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_answers_follow(with_template(processor, chat_template(**texts)), "here")
    assert "\n" not in str(caught.value)


def test_a_template_that_does_not_open_the_turn_of_the_assistant_is_an_error(processor: Processor) -> None:
    template = chat_template().replace("add_generation_prompt", "false")
    with pytest.raises(UsageError, match="begins an answer that is asked for with"):
        check_answers_follow(with_template(processor, template), "here")


def test_a_model_that_always_thinks_is_refused_for_training_but_earlier_checkpoints_load(
    processor: Processor, parts: Path, tmp_path: Path
) -> None:
    thinking = chat_template(always="<think>\n", finished=EMPTY)
    with_template(processor, thinking).save_pretrained(tmp_path / "language")
    with pytest.raises(UsageError, match=r"model\.language: .*language: its chat template opens a <think> block"):
        Processor.from_pretrained(
            language=str(tmp_path / "language"), vision=str(parts / "siglip"), tokens_per_image=36, vocab_size=1536, max_length=512
        )
    processor.save(tmp_path / "checkpoint")
    with_template(processor, thinking).save_pretrained(tmp_path / "checkpoint")
    assert Processor.load(tmp_path / "checkpoint").template_parts.header.endswith("<think>\n")
