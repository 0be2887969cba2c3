"""The model card of an exported model: base models and their licences, settings, data, how to load it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from dataset.sample import Language, Prompts, Task, join_parts
from model.siglip_qwen.config import SiglipQwenConfig
from visual.hub_name import HubName

LLAVA_USAGE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its repository on a hub
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder, backend="pil")  # training resized images with Pillow

image, question = "image.jpg", QUESTION
content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs.to(model.device), max_new_tokens=64, do_sample=False)
answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)
```

Prompts equal those of training: each part of a turn begins on a new line. Stock processors interpret special tokens in a user's text
(`<|im_end|>`): remove them first.
"""

MERGED_USAGE = """\
```
python tools/answer.py --checkpoint FOLDER --image IMAGE --question "What is this?"
```
"""

EXAMPLE_QUESTION: dict[Language, str] = {"en": "What is this?", "zh": "这是什么？"}
KINDS: dict[Task, str] = {
    "vqa": "short-answer questions",
    "caption": "questions for a caption",
    "grounding": "questions for a box",
    "conversation": "other questions",
}
"""Kinds of questions in words."""


def model_card(
    export_format: str,
    settings: SiglipQwenConfig,
    prompts: Prompts,
    dtype: str,
    warnings: list[str],
    data_report: str | None,
    base_folder: str | None = None,
) -> str:
    """Model card in Markdown, with YAML front matter for model hubs.

    Args:
        export_format: merged or llava.
        settings: model settings.
        prompts: sentences that said in training how an answer is wanted.
        dtype: of the weights.
        warnings: notes on the export.
        data_report: table of the training data; None omits the section.
        base_folder: folder with the model that the run started from, if its checkpoints build on it.
    """
    base_models = (settings.vision, settings.language)
    licences = [_licence_line(role, name) for role, name in zip(("Vision", "Language"), base_models, strict=True)]
    sections = [
        f"A SigLIP vision encoder and a Qwen language model, joined by a two-layer connector; {export_format} format, weights in {dtype}.",
        "## Use\n\n" + _usage(export_format, prompts),
        *(f"> **Note.** {warning}" for warning in warnings),
        "## Base models and licences\n\n" + "\n".join([*licences, *([_licence_line("Tuned from", base_folder)] if base_folder else [])]),
        "The weights derive from both models: their licences apply, and so do the terms of the training data. Code: Apache-2.0.",
    ]
    return _card("made", _repositories(*base_models), sections, dataclasses.asdict(settings), data_report)


def whole_model_card(base: str, settings: dict[str, Any], dtype: torch.dtype, data_report: str | None) -> str:
    """Model card of a published model that was tuned further and keeps its own layout.

    Args:
        base: the model that it was tuned from, folder or hub name.
        settings: model settings.
        dtype: of the weights.
        data_report: table of the training data; None omits the section.
    """
    sections = [
        f"Tuned from `{base}` and loaded as it is, by transformers and by Tessera; weights in {str(dtype).removeprefix('torch.')}.",
        "## Use\n\n" + MERGED_USAGE.rstrip(),
        "## Base model and licence\n\n" + _licence_line("Tuned from", base),
    ]
    return _card("tuned", "".join(_repositories(base)), sections, settings, data_report)


def _repositories(*names: str) -> list[str]:
    """The repositories of those models that are of a hub."""
    return [model.repository for name in names if not Path(name).is_dir() and (model := HubName.parse(name))]


def _card(how: str, base_model: list[str] | str, sections: list[str], settings: dict[str, Any], data_report: str | None) -> str:
    front_matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "license": "other"}
    front_matter |= {"base_model": base_model} if base_model else {}
    parts = [
        f"---\n{_as_yaml(front_matter)}---\n# A vision-language model {how} with Tessera",
        *sections,
        "## Settings\n\n```yaml\n" + _as_yaml({"model": settings}).rstrip() + "\n```",
    ]
    if data_report is not None:
        parts.append("## Training data\n\n```\n" + data_report.rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"


def _usage(export_format: str, prompts: Prompts) -> str:
    """How to ask the model, with its prompts: whoever uses the LLaVA format adds them, Tessera adds them itself."""
    language, prompt = next(iter(prompts.get("vqa", {}).items()), ("en", ""))
    question = join_parts((EXAMPLE_QUESTION[language], prompt))
    usage = LLAVA_USAGE.replace("QUESTION", json.dumps(question, ensure_ascii=False)) if export_format == "llava" else MERGED_USAGE
    if not prompts:
        return usage.rstrip()
    who = "add it to the question, as above" if export_format == "llava" else "Tessera adds it to the question"
    lines = [f"- {KINDS[task]} ({language}): `{text}`" for task, texts in prompts.items() for language, text in texts.items()]
    return f"{usage}\nIn training a sentence on a line of its own said how an answer is wanted; {who}:\n\n" + "\n".join(lines)


def read_licence(name: str) -> str | None:
    """Licence in the front matter of README.md in a local model folder; None if there is none."""
    path = Path(name) / "README.md"
    if not path.is_file():
        return None
    front_matter = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8"), re.DOTALL)
    metadata = yaml.safe_load(front_matter[1]) if front_matter else None
    return str(metadata["license"]) if isinstance(metadata, dict) and "license" in metadata else None


def _licence_line(role: str, name: str) -> str:
    return f"- {role}: `{name}`, licence: {read_licence(name) or 'see its own model card'}"


def _as_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
