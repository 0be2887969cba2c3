"""The control text of a language model's chat template, extracted by rendering the template with thinking off.

Training and generation build prompts from these parts, and exported models get a Jinja template built from them.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from errors import UsageError

_TEMPLATE = """
{%- set state = namespace(before=$opening, text='') -%}
{%- for message in messages -%}
  {%- if message.content is string -%}
    {%- set state.text = message.content -%}
  {%- else -%}
    {%- set state.text = '' -%}
    {%- for part in message.content -%}
      {%- if part.type == 'text' -%}{%- set text = part.text | trim -%}{%- else -%}{%- set text = $image -%}{%- endif -%}
      {%- if state.text and text -%}{%- set state.text = state.text + '\\n' -%}{%- endif -%}
      {%- set state.text = state.text + text -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set state.text = state.text | trim -%}
  {%- if message.role == 'system' -%}
    {{- $system_open + state.text + $system_close -}}
    {%- set state.before = '' -%}
  {%- elif message.role == 'user' -%}
    {{- state.before + state.text -}}
    {%- if not loop.last or add_generation_prompt -%}{{- $header -}}{%- endif -%}
  {%- else -%}
    {{- state.text + $end -}}
    {%- set state.before = $next_user -%}
  {%- endif -%}
{%- endfor -%}
"""
"""The parts of a turn are joined as dataset.sample.join_parts does. Programs that look whether a template takes parts search for a loop
over `message.content` outside macros."""

_EMPTY_BLOCK = re.compile(r"<(\w+)>\s*</\1>\s*")
_OPENING_TAG = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True)
class ChatTemplateParts:
    """The control text around messages; with thinking off, Qwen3's `header` contains the empty think block in every turn.

    A prompt is opening + user text + header + answer + end + next_user + user text + header ...
    With a system message, system_open + system text + system_close replaces the opening.

    Args:
        opening: text before the first user message.
        system_open: text before the system message.
        system_close: text between the system message and the first user message.
        header: text between a user message and the answer.
        end: the end-of-turn token.
        next_user: text between the end-of-turn token and the next user message.
    """

    opening: str
    system_open: str
    system_close: str
    header: str
    end: str
    next_user: str

    def template(self, image_token: str) -> str:
        """A Jinja chat template that renders exactly this layout, for exported models.

        Message content is text, or a list of {type: image} and {type: text, text} items; an image is rendered as `image_token`.
        """
        template = _TEMPLATE.replace("$image", json.dumps(image_token))
        # Longest names first, so that no name is replaced inside a longer one.
        for name, piece in sorted(dataclasses.asdict(self).items(), key=lambda item: -len(item[0])):
            template = template.replace(f"${name}", json.dumps(piece, ensure_ascii=False))
        return template


def chat_template_parts(tokenizer: Any, plain_end: str | None = None) -> ChatTemplateParts:
    """Extract the control text of a tokenizer's chat template by rendering it around sentinel texts.

    plain_end: the token that ends an answer where the template has none; None if it must have one. Raises UsageError when the template
    omits or reorders messages, or does not end an answer with a control token.
    """
    sentinels = {"system": "Sentinel system.", "user": "Sentinel question.", "assistant": "Sentinel answer.", "next": "Sentinel next."}
    user = {"role": "user", "content": sentinels["user"]}
    turns = [user, {"role": "assistant", "content": sentinels["assistant"]}, {"role": "user", "content": sentinels["next"]}]

    takes_parts = plain_end is not None and sentinels["user"] not in _render(tokenizer, [user])

    def render(messages: list[dict[str, str]]) -> str:
        return _render(tokenizer, messages, takes_parts)

    def texts_between(text: str, *keys: str) -> list[str]:
        parts = []
        for key in keys:
            before, sentinel, text = text.partition(sentinels[key])
            if not sentinel:
                raise UsageError(f"model.language: its chat template leaves out or moves the {key} text; a ChatML-like one is expected")
            parts.append(before)
        return [*parts, text]

    opening, header = texts_between(render([user]), "user")
    system_open, system_close, _ = texts_between(render([{"role": "system", "content": sentinels["system"]}, user]), "system", "user")
    after_answer = texts_between(render(turns), "user", "assistant", "next")[2]
    ids = tokenizer.encode(after_answer, add_special_tokens=False)
    end = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    has_control_token = end is not None and after_answer.startswith(end) and ids[0] in tokenizer.added_tokens_decoder
    if plain_end is not None and not has_control_token:
        return ChatTemplateParts(opening, system_open, system_close, header, plain_end, after_answer.lstrip())
    if end is None or not has_control_token:
        raise UsageError(f"model.language: its chat template ends an answer with {after_answer!r}, not with a control token")
    return ChatTemplateParts(opening, system_open, system_close, header, end, after_answer[len(end) :])


def _render(tokenizer: Any, messages: list[dict[str, str]], takes_parts: bool = False) -> str:
    """A conversation up to the position of the next answer. takes_parts: contents are lists of parts."""
    if takes_parts:
        messages = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]  # type: ignore[dict-item]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def check_answers_follow(tokenizer: Any, where: str) -> None:
    """Check that an answer can follow the generation prompt of a chat template directly, as it does in training.

    The text before an answer that is asked for must be the text before an answer of a finished conversation; only empty blocks such as
    `<think></think>` may stand in one and not in the other. A template for models that always think leaves a block open: the model would
    be trained to answer inside it.

    where: setting that names the model, for the message. Raises UsageError when the two texts differ.
    """
    user, answer = {"role": "user", "content": "Sentinel question."}, {"role": "assistant", "content": "Sentinel answer."}
    options = {"tokenize": False, "enable_thinking": False}
    asked = str(tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)).partition(user["content"])[2]
    finished = str(tokenizer.apply_chat_template([user, answer], add_generation_prompt=False, **options))
    answered = finished.partition(user["content"])[2].partition(answer["content"])[0]
    without_empty_blocks = _EMPTY_BLOCK.sub("", asked)
    if without_empty_blocks == _EMPTY_BLOCK.sub("", answered):
        return
    open_blocks = [name for name in _OPENING_TAG.findall(without_empty_blocks) if f"</{name}>" not in without_empty_blocks]
    if open_blocks:
        raise UsageError(
            f"{where}: its chat template opens a <{open_blocks[0]}> block before every answer, also with thinking off; a model that can "
            "answer without one is expected, such as Qwen3-1.7B or an Instruct model"
        )
    raise UsageError(
        f"{where}: its chat template begins an answer that is asked for with {asked!r}, but one in a conversation with {answered!r}; "
        "the same text is expected"
    )
