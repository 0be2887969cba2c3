"""The form of tables and their numbers, for the terminal, report.md and report.html."""

import unicodedata
from collections.abc import Iterable, Sequence

from evaluation.statistics import TestedDifference

Row = Sequence[str]
Table = tuple[Row, list[Row]]
"""Header and rows."""

DIFFERENCE_HEADINGS = ("a - b (points)", "95 % interval", "p", "p (Holm)")
"""Headings of `difference_cells`."""


def align_columns(header: Row, rows: Iterable[Row]) -> str:
    """A table with aligned columns; a wide (Chinese) character takes two columns."""
    lines = [header, *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(header))]
    rendered = ["  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rendered[0], "-" * max(map(_width, rendered)), *rendered[1:]])


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def difference_cells(row: TestedDifference) -> Row:
    """Difference and interval in points, p-value, and adjusted p-value."""
    low, high = row.ci95
    return points(row.difference), f"{points(low)} .. {points(high)}", f"{row.p_value:.4f}", f"{row.p_holm:.4f}"


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def format_interval(interval: Sequence[float]) -> str:
    """An interval of fractions in percent."""
    return f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"


def _width(text: str) -> int:
    """Width of a text in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
