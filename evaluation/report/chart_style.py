"""Style of all charts, and writing them as PNG."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from answering.rendering import chinese_font, warn_of_missing_font
from atomic_io import atomic_write

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Palette for colour-blind readers (Okabe & Ito 2008)."""
RIGHT, WRONG = "#1a7f4b", "#b3261e"
GREY = "#8c8c8c"
ERROR_BAR_STYLE = {"ecolor": "#333333", "elinewidth": 1, "capsize": 3}


@contextmanager
def style() -> Iterator[None]:
    """Context with matplotlib settings for all charts; warns if no installed font has Chinese characters."""
    font = chinese_font()
    if font is None:
        warn_of_missing_font()
    style = {
        "font.family": ["DejaVu Sans", *([register_font(font)] if font else [])],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        # Dollar signs in questions do not start a formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # matplotlib would warn about every character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def register_font(font: Path) -> str:
    """Make a font file available to matplotlib. Returns its family name."""
    name = font_manager.get_font(font).family_name
    if name not in font_manager.get_font_names():
        font_manager.fontManager.addfont(font)
    return name


def save(figure: Figure, path: Path) -> Path:
    """Write a chart as PNG, atomically."""
    with atomic_write(path) as temp_path:
        figure.savefig(temp_path, dpi=150, bbox_inches="tight", facecolor="white")
    return path


def percent_axis(axes: Axes, axis: str) -> None:
    """Format axis "x" or "y" as accuracy in percent."""
    getattr(axes, f"set_{axis}lim")(0, 105)
    getattr(axes, f"set_{axis}label")("VQA accuracy, %, with 95 % interval" if axis == "y" else "VQA accuracy, %")


def legend_above(axes: Axes, columns: int = 3) -> None:
    """Place the legend in one line between title and chart."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2, fontsize=9)
