"""The report's charts as PNG files: accuracy by category, before and after the rerank, right and wrong cases."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from answering.drawing import chinese_font
from atomic import replacing
from dataset.store import Store
from evaluation.examples import RIGHT as RIGHT_FROM
from evaluation.examples import Example, thumbnail
from evaluation.tables import shown_choice

log = logging.getLogger(__name__)

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Told apart by the colour-blind too (Okabe & Ito 2008)."""
RIGHT, WRONG = "#1a7f4b", "#b3261e"
_CASES = 8  # of each kind in the grid
_COLUMNS = 4


def write_charts(summary: dict[str, Any], examples: Sequence[Example], store: Store, out: Path) -> list[Path]:
    """accuracy_by_category.png, rerank.png, cases.png: those that there is something to show in. Returns their paths."""
    if not examples:
        return []
    with _style():
        written = [_save(_by_category(summary), out / "accuracy_by_category.png")]
        if "rerank" in summary:
            written.append(_save(_rerank(summary), out / "rerank.png"))
        written.append(_save(_cases(examples, store), out / "cases.png"))
    return written


@contextmanager
def _style() -> Iterator[None]:
    font = chinese_font()
    if font is None:
        log.warning("no font with Chinese characters is installed, so charts show boxes instead; fonts-noto-cjk is one")
    style = {
        "font.family": ["DejaVu Sans", *([_family(font)] if font else [])],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        # A question may hold dollar signs; they are no formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # Once is enough: matplotlib would say it for each character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _family(font: Path) -> str:
    """The name by which matplotlib then finds a font file."""
    name = font_manager.get_font(font).family_name
    if name not in font_manager.get_font_names():
        font_manager.fontManager.addfont(font)
    return name


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as beside:
        figure.savefig(beside, dpi=150, bbox_inches="tight", facecolor="white")
    return path


def _by_category(summary: dict[str, Any]) -> Figure:
    """Bars by category, one for each system, with the number of questions beside the name."""
    shown = {name: shown_choice(figures["choices"]) for name, figures in summary["systems"].items()}
    parts = {name: summary["systems"][name]["choices"][choice]["by_category"] for name, choice in shown.items()}
    categories = list(next(iter(parts.values())))
    height = 0.8 / len(parts)
    figure = Figure(figsize=(8, 1.4 + len(categories) * (0.35 + 0.22 * len(parts))))
    axes = figure.subplots()
    for i, (name, by_category) in enumerate(parts.items()):
        places = [row + i * height for row in range(len(categories))]
        values = [100 * by_category[category]["vqa_accuracy"] for category in categories]
        bars = axes.barh(places, values, height * 0.92, color=COLORS[i % len(COLORS)], label=f"{name} ({shown[name]})")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color="#444444")
    counts = next(iter(parts.values()))
    axes.set_yticks([row + (0.8 - height) / 2 for row in range(len(categories))])
    axes.set_yticklabels([f"{category}\n({counts[category]['questions']:,})" for category in categories])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _percent_axis(axes, "x")
    axes.set_title("Official VQA accuracy by category (questions)", loc="left", pad=30 if len(parts) > 1 else 12)
    if len(parts) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, borderaxespad=0.2, fontsize=9)
    return figure


def _rerank(summary: dict[str, Any]) -> Figure:
    """First candidate, reranked answer and the oracle's ceiling of each system, with 95 % intervals."""
    systems = {name: figures["choices"] for name, figures in summary["systems"].items()}
    kinds = [("first", "#8c8c8c", "before: first"), ("reranked", COLORS[0], "after: reranked"), ("oracle", "none", "ceiling: oracle")]
    figure = Figure(figsize=(max(5.0, 1.6 + 1.8 * len(systems)), 4.2))
    axes = figure.subplots()
    for i, (kind, color, label) in enumerate(kinds):
        places = [place + (i - 1) * 0.26 for place in range(len(systems))]
        measures = [choices[kind] for choices in systems.values()]
        values = [100 * m["vqa_accuracy"] for m in measures]
        ends = [[100 * abs(m["vqa_accuracy"] - m["vqa_accuracy_ci95"][side]) for m in measures] for side in (0, 1)]
        edge = "#8c8c8c" if color == "none" else color
        whiskers = {"ecolor": "#333333", "elinewidth": 1, "capsize": 3}
        line = "--" if color == "none" else "-"
        bars = axes.bar(places, values, 0.24, yerr=ends, error_kw=whiskers, color=color, edgecolor=edge, linestyle=line, label=label)
        # Above the interval: inside, its line would cross the number, and a bar of 0 has no inside.
        axes.bar_label(bars, labels=[f"{value:.1f}" for value in values], padding=2, fontsize=8, color="#444444")
    axes.set_xticks(range(len(systems)))
    axes.set_xticklabels(list(systems))
    axes.grid(visible=False, axis="x")
    _percent_axis(axes, "y")
    axes.set_title("Before and after the rerank", loc="left", pad=26)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, borderaxespad=0.2, fontsize=9)
    return figure


def _percent_axis(axes: Axes, which: str) -> None:
    getattr(axes, f"set_{which}lim")(0, 105)
    getattr(axes, f"set_{which}label")("official VQA accuracy, %, with 95 % interval" if which == "y" else "official VQA accuracy, %")


def _cases(examples: Sequence[Example], store: Store) -> Figure:
    """A grid of right and of wrong answers of the first system, with question, references and answer."""
    right = [e for e in examples if e.answers[0].right and e.question.image_ids][:_CASES]
    wrong = [e for e in examples if not e.answers[0].right and e.question.image_ids][:_CASES]
    rows = [group[i : i + _COLUMNS] for group in (right, wrong) for i in range(0, len(group), _COLUMNS)]
    figure = Figure(figsize=(3.1 * _COLUMNS, 0.5 + 3.3 * max(1, len(rows))), layout="constrained")
    title = f"Right and wrong answers of {examples[0].answers[0].system} (right: an official accuracy of at least {100 * RIGHT_FROM:.0f} %)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    grid = figure.subplots(max(1, len(rows)), _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, places in zip(rows, grid, strict=False):
        for example, axes in zip(row, places, strict=False):
            _case(axes, example, thumbnail(example.question.image_ids[0], store))
    return figure


def _case(axes: Axes, example: Example, picture: Image.Image | None) -> None:
    answer = example.answers[0]
    color = RIGHT if answer.right else WRONG
    axes.axis("on")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2)
    axes.set_box_aspect(0.75)
    if picture is not None:
        axes.imshow(picture)
        axes.set_adjustable("datalim")
    axes.set_title(wrapped(example.question.text, 34, 2), fontsize=9, loc="left")
    references = " / ".join(text for text, _ in example.references[:3])
    said = f"{'✓' if answer.right else '✗'} {answer.answer}"
    axes.set_xlabel(f"{wrapped(said, 34, 1)}\n{wrapped(f'references: {references}', 36, 1)}", fontsize=9, loc="left", color=color)


def wrapped(text: str, width: int, lines: int) -> str:
    """At most `lines` lines of `width` columns; a Chinese character takes two, and lines may end behind each of them."""
    broken, used = [""], 0
    for piece in _pieces(text):
        columns = sum(2 if ord(character) > 0x2E7F else 1 for character in piece)
        if used + columns > width and used:
            broken.append("")
            used = 0
        broken[-1] += piece
        used += columns
    kept = [line.strip() for line in broken]
    return "\n".join(kept) if len(kept) <= lines else "\n".join(kept[:lines]) + " ..."


def _pieces(text: str) -> Iterator[str]:
    """Words with the blank behind them, and wide characters one by one; nothing longer than 30 columns."""
    word = ""
    for character in text:
        wide = ord(character) > 0x2E7F
        if word and (wide or len(word) == 30):
            yield word
            word = ""
        word += character
        if wide or character == " ":
            yield word
            word = ""
    if word:
        yield word
