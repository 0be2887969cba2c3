"""The texts of the demo page in English and Chinese, with its messages for errors and notes on answers."""

import functools
from pathlib import Path
from typing import Any

import yaml

from errors import TesseraError
from serving.demo.session import Turn

LANGUAGES = {"English": "en", "中文": "zh"}
"""Language codes by the names that the page shows."""


class PageError(TesseraError):
    """A message shown instead of a result. key: of translations.yaml; values: fill in its placeholders."""

    def __init__(self, key: str, **values: object):
        super().__init__(key)
        self.key, self.values = key, values


@functools.cache
def translations(language: str) -> dict[str, Any]:
    """The texts of the page in a language, en or zh, by key."""
    all_languages: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "translations.yaml").read_text(encoding="utf-8"))
    return all_languages[language]


def error_text(error: TesseraError, language: str) -> str:
    """The status line for an error."""
    page_text = translations(LANGUAGES[language])
    if isinstance(error, PageError):
        return f"⚠️ {page_text[error.key].format(**error.values)}"
    return f"⚠️ {page_text['not_answered'].format(reason=error)}"


def notes_text(turn: Turn, language: str) -> str:
    """What is to be said of an answer: how likely it is right, as far as that is known, and that it was cut; empty if nothing is."""
    texts = translations(LANGUAGES[language])
    notes = []
    if turn.confidence is not None:
        sentence = str(texts["confidence"]).format(probability=f"{turn.confidence:.0%}")
        unlike = "; ".join(str(texts[f"unlike_{part}"]) for part in turn.unlike)
        notes.append(f"{sentence} ({unlike})" if unlike else sentence)
    if turn.is_cut:
        notes.append(str(texts["cut"]))
    return "  \n".join(notes)
