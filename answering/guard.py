"""Questions that the rerank leaves alone: a picture scorer hardly tells yes from no, or three from four."""

from typing import Literal, TypeAlias

from answering.prompting import ASKS_COUNT, ASKS_YES_NO, asks
from answering.statements import core
from dataset.sample import Language

Guarded: TypeAlias = Literal["yes/no", "counting"]
KINDS: tuple[Guarded, ...] = ("yes/no", "counting")
"""Kinds of questions that can be left alone."""


def guarded_kind(question: str, language: Language) -> Guarded | None:
    """Whether a question wants yes or no, or a number; None for any other."""
    text = core(question, language)
    if asks(ASKS_YES_NO, text):
        return "yes/no"
    return "counting" if asks(ASKS_COUNT, text) else None
