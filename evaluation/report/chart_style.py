"""How every chart looks, and how it is written."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from answering.rendering import chinese_font
from atomic_io import atomic_write

log = logging.getLogger(__name__)

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Told apart by the colour-blind too (Okabe & Ito 2008)."""
RIGHT, WRONG = "#1a7f4b", "#b3261e"
GREY = "#8c8c8c"
ERROR_BAR_STYLE = {"ecolor": "#333333", "elinewidth": 1, "capsize": 3}


@contextmanager
def style() -> Iterator[None]:
    """Settings of matplotlib for all charts; says once when no installed font has Chinese characters."""
    font = chinese_font()
    if font is None:
        log.warning("no font with Chinese characters is installed, so charts show boxes instead; fonts-noto-cjk is one")
    style = {
        "font.family": ["DejaVu Sans", *([register_font(font)] if font else [])],
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


def register_font(font: Path) -> str:
    """The name by which matplotlib then finds a font file."""
    name = font_manager.get_font(font).family_name
    if name not in font_manager.get_font_names():
        font_manager.fontManager.addfont(font)
    return name


def save(figure: Figure, path: Path) -> Path:
    """Write a chart as PNG."""
    with atomic_write(path) as temp_path:
        figure.savefig(temp_path, dpi=150, bbox_inches="tight", facecolor="white")
    return path


def percent_axis(axes: Axes, axis: str) -> None:
    """An axis `x` or `y` of percentages."""
    getattr(axes, f"set_{axis}lim")(0, 105)
    getattr(axes, f"set_{axis}label")("official VQA accuracy, %, with 95 % interval" if axis == "y" else "official VQA accuracy, %")


def legend_above(axes: Axes, columns: int = 3) -> None:
    """A legend in a line above the chart, below its title."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2, fontsize=9)
