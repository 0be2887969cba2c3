"""What the demo page shows of turns, candidates, search results and errors, in English and Chinese."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from answering.reply import Reply
from errors import TesseraError
from serving.demo.session import Turn
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit

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


def page_texts(language: str) -> dict[str, Any]:
    """The texts of the page in one of LANGUAGES."""
    return translations(LANGUAGES[language])


def error_text(error: TesseraError, language: str) -> str:
    """The status line for an error."""
    shown = error if isinstance(error, PageError) else PageError("not_answered", reason=error)
    return f"⚠️ {page_texts(language)[shown.key].format(**shown.values)}"


def notes_text(turn: Turn, language: str) -> str:
    """What is to be said of an answer: how likely it is right, as far as that is known, and that it was cut; empty if nothing is."""
    texts = page_texts(language)
    notes = []
    if turn.confidence is not None:
        sentence = str(texts["confidence"]).format(probability=f"{turn.confidence:.0%}")
        unlike = "; ".join(str(texts[f"unlike_{part}"]) for part in turn.unlike)
        notes.append(f"{sentence} ({unlike})" if unlike else sentence)
    if turn.is_cut:
        notes.append(str(texts["cut"]))
    return "  \n".join(notes)


def chat_messages(turns: Sequence[Turn], language: str) -> list[dict[str, str]]:
    """The turns as messages of gradio's chatbot, each answer with what is to be said of it."""
    messages = []
    for turn in turns:
        notes = notes_text(turn, language)
        answer = f"{turn.answer}\n\n<small>{notes}</small>" if notes else turn.answer
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
    return messages


def candidate_cells(answered: Reply) -> list[list[str]]:
    """The candidates of an answer, best fused score first, as table cells: chosen, answer, likelihood, CLIP score, fused score."""
    return [
        [
            "✓" if candidate["text"].strip() == answered.chosen else "",
            candidate["text"],
            percent(None if candidate["log_prob"] is None else math.exp(candidate["log_prob"])),
            _number(candidate.get("clip"), 2),
            _number(candidate.get("fused")),
        ]
        for candidate in sorted(answered.candidates(), key=lambda candidate: -candidate.get("fused", 0.0))
    ]


def table_update(cells: list[list[str]], language: str) -> dict[str, Any]:
    """The value of a candidate table. It includes the column headings, since gradio would drop them otherwise."""
    return {"headers": page_texts(language)["candidate_columns"], "data": cells}


def percent(value: float | None) -> str:
    """A probability with one decimal."""
    if value is None:
        return "–"
    return "< 0.1 %" if 0 <= value < 0.0005 else f"{value:.1%}".replace("%", " %")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def gallery(index: ImageIndex, hits: Sequence[SearchHit], language: str) -> tuple[list[tuple[Any, str]], str]:
    """Thumbnails with their scores as captions, and a status line that names the missing files, if there are any."""
    captioned_images: list[tuple[Any, str]] = []
    missing: list[str] = []
    for hit in hits:
        name = hit.path.name if hit.path else hit.id[:12]
        try:
            captioned_images.append((index.thumbnail(hit, 360), f"{hit.score:.3f} · {shorten(name)}"))
        except TesseraError:
            missing.append(name)
    error = PageError("missing_images", number=len(missing), names=", ".join(missing))
    return captioned_images, error_text(error, language) if missing else ""


def shorten(name: str) -> str:
    """A file name that fits below a thumbnail in two lines; its end is kept, since files differ there."""
    return name if len(name) <= 32 else f"…{name[-30:]}"
