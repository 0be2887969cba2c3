"""Formats turns, candidates and search results for the components of the demo page."""

from collections.abc import Sequence
from typing import Any

from errors import TesseraError
from serving.demo.localization import LANGUAGES, notes_text, translations
from serving.demo.session import CandidateRow, Turn
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import SearchHit


def chat_messages(turns: Sequence[Turn], language: str) -> list[dict[str, str]]:
    """The turns as messages of gradio's chatbot, each answer with what is to be said of it."""
    texts = [(("user", turn.question), ("assistant", _with_notes(turn, language))) for turn in turns]
    return [{"role": role, "content": text} for turn in texts for role, text in turn]


def _with_notes(turn: Turn, language: str) -> str:
    notes = notes_text(turn, language)
    return f"{turn.answer}\n\n<small>{notes}</small>" if notes else turn.answer


def candidate_cells(rows: Sequence[CandidateRow]) -> list[list[str]]:
    """The candidates as table cells: chosen, answer, likelihood, CLIP score, fused score."""
    return [["✓" if row.chosen else "", row.text, percent(row.likelihood), _number(row.clip, 2), _number(row.fused)] for row in rows]


def table_update(cells: list[list[str]], language: str) -> dict[str, Any]:
    """The value of a candidate table. It includes the column headings, since gradio would drop them otherwise."""
    return {"headers": translations(LANGUAGES[language])["candidate_columns"], "data": cells}


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
        try:
            captioned_images.append((index.thumbnail(hit, 360), f"{hit.score:.3f} · {shorten(hit.path.name if hit.path else hit.id[:12])}"))
        except TesseraError:
            missing.append(hit.path.name if hit.path else hit.id[:12])
    if not missing:
        return captioned_images, ""
    text = translations(LANGUAGES[language])["missing_images"].format(number=len(missing), names=", ".join(missing))
    return captioned_images, f"⚠️ {text}"


def shorten(name: str) -> str:
    """A file name that fits below a thumbnail in two lines; its end is kept, since files differ there."""
    return name if len(name) <= 32 else f"…{name[-30:]}"
