"""The control pieces of a language model's own chat template, found by rendering it with thinking off."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from errors import UsageError

_TEMPLATE = """
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}{{- $image -}}{%- else -%}{{- part.text -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
  {{- $system_open + text(messages[0].content) + $system_close -}}
{%- else -%}
  {{- $opening -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
  {%- if message.role == 'user' -%}
    {%- if not loop.first -%}{{- $next_user -}}{%- endif -%}
    {{- text(message.content) -}}
    {%- if not loop.last or add_generation_prompt -%}{{- $header -}}{%- endif -%}
  {%- else -%}
    {{- text(message.content) | trim + $end -}}
  {%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True, slots=True)
class ChatTemplateParts:
    """The text between contents. With thinking off, Qwen3's header holds the empty think block, in every turn alike.

    opening + user text + header + answer + end + next_user + user text + header ...; with a system message,
    system_open + system text + system_close stands in place of the opening.
    """

    opening: str
    system_open: str
    system_close: str
    header: str
    end: str
    next_user: str

    def template(self, image_token: str) -> str:
        """A Jinja chat template that renders just this layout, for exported models and stock runtimes.

        Contents are text, or lists of {type: image} and {type: text, text} parts; a picture becomes `image_token`.
        """
        template = _TEMPLATE.replace("$image", json.dumps(image_token))
        # Longest names first: $system_open must not be read as another piece's name followed by text.
        for name, piece in sorted(dataclasses.asdict(self).items(), key=lambda item: -len(item[0])):
            template = template.replace(f"${name}", json.dumps(piece, ensure_ascii=False))
        return template


def chat_template_parts(tokenizer: Any) -> ChatTemplateParts:
    """The pieces of a tokenizer's chat template.

    Raises UsageError when the template does not keep contents in order or does not close an answer with one token.
    """
    sentinels = {"system": "Sentinel system.", "user": "Sentinel question.", "assistant": "Sentinel answer.", "next": "Sentinel next."}
    user = {"role": "user", "content": sentinels["user"]}
    turns = [user, {"role": "assistant", "content": sentinels["assistant"]}, {"role": "user", "content": sentinels["next"]}]

    def render(messages: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False))

    def texts_between(text: str, *keys: str) -> list[str]:
        parts = []
        for key in keys:
            before, sentinel, text = text.partition(sentinels[key])
            if not sentinel:
                raise UsageError(f"model.language: its chat template leaves out the {key} text; a ChatML-like template is expected")
            parts.append(before)
        return [*parts, text]

    opening, header = texts_between(render([user]), "user")
    system_open, system_close, _ = texts_between(render([{"role": "system", "content": sentinels["system"]}, user]), "system", "user")
    after_answer = texts_between(render(turns), "user", "assistant", "next")[2]
    ids = tokenizer.encode(after_answer, add_special_tokens=False)
    end = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    if end is None or not after_answer.startswith(end) or ids[0] not in tokenizer.added_tokens_decoder:
        raise UsageError(f"model.language: its chat template closes an answer with {after_answer!r}; a control token is expected there")
    return ChatTemplateParts(opening, system_open, system_close, header, end, after_answer[len(end) :])
