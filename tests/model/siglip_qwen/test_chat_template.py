"""Extracting the control text of a chat template, and the Jinja template built from it."""

from dataclasses import dataclass, field
from typing import Any

import jinja2
import pytest

from dataset.sample import Message
from errors import UsageError
from model.siglip_qwen.chat_template import chat_template_parts
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
