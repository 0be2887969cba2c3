"""Style of all charts, and writing them as PNG and as SVG for a page."""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
INK, GRID_LINE = "#333333", "#e6e6e6"
"""Numbers and error bars, and grid lines; on a page they follow its color scheme, as black does."""
ERROR_BAR_STYLE = {"ecolor": INK, "elinewidth": 1, "capsize": 3}
_PAGE_COLORS = {"#000000": "currentColor", INK: "currentColor", GRID_LINE: "var(--line)"}
_CHARACTERS_PER_INCH = 12
"""Of a legend's text, 9 points."""
_PIXELS_PER_POINT = 96 / 72


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
        "grid.color": GRID_LINE,
        # Text stays text: sharp, selectable, in the font of the page.
        "svg.fonttype": "none",
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


def legend_below(figure: Figure) -> None:
    """Place one legend for all charts of a figure below them, where it covers nothing. Equal labels are listed once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    fitting = int(figure.get_figwidth() * _CHARACTERS_PER_INCH / (max(map(len, handles)) + 6))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower left", ncols=min(len(handles), max(1, fitting)), frameon=False, fontsize=9
    )


def page_svg(figure: Figure, name: str, caption: str) -> tuple[str, int]:
    """A chart as an inline SVG element, and its width in CSS pixels where its letters have their own size.

    Its background is clear, its black and grey are the page's own colors. name: prefix of the ids in the SVG, unique in the page. caption:
    text for screen readers.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    svg = ET.fromstring(buffer.getvalue())
    for parent in list(svg.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in svg.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _for_page(_local(key), value, name) for key, value in element.attrib.items()}
    width = round(float(svg.attrib.pop("width").removesuffix("pt")) * _PIXELS_PER_POINT)
    del svg.attrib["height"]
    svg.attrib |= {"role": "img", "aria-label": caption, "fill": "currentColor", "stroke-linejoin": "round"}
    return ET.tostring(svg, encoding="unicode"), width


def _local(name: str) -> str:
    """A tag or attribute without its namespace, which HTML does not need."""
    return name.rpartition("}")[2]


def _for_page(attribute: str, value: str, name: str) -> str:
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href":
        return value.replace("#", f"#{name}-", 1)
    if attribute == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if attribute == "style":
        value = re.sub("|".join(_PAGE_COLORS), lambda match: _PAGE_COLORS[match.group()], value)
        return re.sub(r"font-family: [^;]*", "font-family: var(--font)", value)
    return value
