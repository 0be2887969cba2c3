"""The decoding settings on the demo page: their components, and the settings that the values of these give."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from pydantic import ValidationError

from answering.config import DecodingConfig
from serving.demo.localization import PageError
from serving.http.validation_messages import describe_problems

WHOLE_NUMBERS = ("top_k", "no_repeat_ngram_size", "seed")
NUMBERS = (
    *("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size"),
    *("length_penalty", "presence_penalty", "frequency_penalty", "seed"),
)
NAMES = ("strategy", *NUMBERS, "stop")
"""The settings, in the order of their components; their labels have the keys `decoding_NAME`."""


def decoding_components(add: Callable[..., Any], configured: DecodingConfig) -> list[Any]:
    """The components of the settings, with the configured values, inside a panel that is closed at first.

    add: adds a component whose label has a key of the translations.
    """
    with add(gr.Accordion(open=False, elem_id="decoding"), label="decoding"):
        strategy = gr.Radio(["beam", "sample", "greedy"], value=configured.strategy, elem_id="decoding_strategy")
        components = [add(strategy, label="decoding_strategy")]
        for name in NUMBERS:
            number = gr.Number(getattr(configured, name), precision=0 if name in WHOLE_NUMBERS else None, elem_id=f"decoding_{name}")
            components.append(add(number, label=f"decoding_{name}"))
        stop = gr.Textbox("\n".join(configured.stop), lines=2, elem_id="decoding_stop")
        components.append(add(stop, label="decoding_stop"))
    return components


def changed_settings(values: Sequence[Any], configured: DecodingConfig) -> dict[str, Any]:
    """The settings that differ from the configured ones, from the values of the components. Raises PageError for an impossible one."""
    changes = dict(zip(NAMES, values, strict=True)) if values else {}
    if "stop" in changes:
        changes["stop"] = tuple(line for line in str(changes["stop"] or "").splitlines() if line)
    changes = {name: float(value) if type(value) is int and name not in WHOLE_NUMBERS else value for name, value in changes.items()}
    changes = {name: value for name, value in changes.items() if value != getattr(configured, name)}
    try:
        dataclasses.replace(configured, **changes)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise PageError("invalid_decoding", reason=describe_problems(entries, None)) from error
    return changes
