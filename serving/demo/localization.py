"""The texts of the demo page in English and Chinese, with its messages for errors and confidence."""

import functools
from pathlib import Path
from typing import Any

import yaml

from answering.reply import Reply
from errors import TesseraError

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


def confidence_text(answered: Reply, language: str) -> str:
    """The probability that an answer is right, and what about the question is unlike those it was learnt from; empty if none was fitted."""
    if answered.confidence is None:
        return ""
    texts = translations(LANGUAGES[language])
    sentence = str(texts["confidence"]).format(probability=f"{answered.confidence:.0%}")
    return f"{sentence} ({'; '.join(str(texts[f'unlike_{part}']) for part in answered.unlike)})" if answered.unlike else sentence
