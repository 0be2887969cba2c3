"""What an experiment says must hold for its checkpoint and its controls, held against what was measured."""

from collections.abc import Callable, Iterable
from typing import Any

from errors import UsageError
from evaluation.config import Bars, EvalConfig

Controls = dict[str, float]
"""VQA accuracy of each control run."""

_NEEDS = {"shuffled_pictures": "shuffled_pictures", "lead": "shuffled_pictures", "untuned": "untuned"}
_MEASURED: dict[str, tuple[str, str, Callable[[float, Controls], float]]] = {
    "first": ("{system}, first candidate", "at least", lambda first, _: first),
    "shuffled_pictures": ("the same with shuffled pictures", "at most", lambda _, controls: controls["shuffled_pictures"]),
    "untuned": ("the same with an untrained projector", "at most", lambda _, controls: controls["untuned"]),
    "lead": ("{system} above shuffled pictures", "at least", lambda first, controls: first - controls["shuffled_pictures"]),
}


def check_bars(settings: EvalConfig) -> None:
    """Raises UsageError for a bar about a control that is not run."""
    for name, control in _NEEDS.items():
        if getattr(settings.bars, name) is not None and control not in settings.controls:
            raise UsageError(f"eval.bars.{name}: it is about the control {control}, which eval.controls does not name")


def held_against(bars: Bars, system: str, first: float, controls: Controls) -> list[dict[str, Any]]:
    """Every bar that is set: its name, what was measured, the limit, its kind (at least, at most), and whether it is met.

    system: the name of the checkpoint; first: VQA accuracy of its first candidates. Fractions 0..1.
    """
    found = []
    for name, (what, kind, measured) in _MEASURED.items():
        limit = getattr(bars, name)
        if limit is None:
            continue
        value = measured(first, controls)
        met = value >= limit if kind == "at least" else value <= limit
        found.append({"name": name, "what": what.format(system=system), "value": value, "kind": kind, "limit": limit, "met": met})
    return found


def missed(bars: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the bars that are not met."""
    return [bar["name"] for bar in bars if not bar["met"]]
