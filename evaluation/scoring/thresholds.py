"""What an experiment says must hold for its checkpoint and its controls, held against what was measured."""

from collections.abc import Callable, Iterable
from typing import Any

from errors import UsageError
from evaluation.config import EvalConfig, Thresholds

Controls = dict[str, float]
"""VQA accuracy of each control run."""

_REQUIRED_CONTROLS = {"shuffled_images": "shuffled_images", "min_lead": "shuffled_images", "untuned": "untuned"}
_MEASUREMENTS: dict[str, tuple[str, str, Callable[[float, Controls], float]]] = {
    "first": ("{system}, first candidate", "at least", lambda first, _: first),
    "shuffled_images": ("the same with shuffled pictures", "at most", lambda _, controls: controls["shuffled_images"]),
    "untuned": ("the same with an untrained projector", "at most", lambda _, controls: controls["untuned"]),
    "min_lead": ("{system} above shuffled pictures", "at least", lambda first, controls: first - controls["shuffled_images"]),
}


def check_thresholds(settings: EvalConfig) -> None:
    """Raises UsageError for a bar about a control that is not run."""
    for name, control in _REQUIRED_CONTROLS.items():
        if getattr(settings.thresholds, name) is not None and control not in settings.controls:
            raise UsageError(f"eval.thresholds.{name}: it is about the control {control}, which eval.controls does not name")


def check_against_thresholds(thresholds: Thresholds, system: str, first: float, controls: Controls) -> list[dict[str, Any]]:
    """Every bar that is set: its name, what was measured, the limit, its kind (at least, at most), and whether it is met.

    system: the name of the checkpoint; first: VQA accuracy of its first candidates. Fractions 0..1.
    """
    found = []
    for name, (description, kind, measured) in _MEASUREMENTS.items():
        limit = getattr(thresholds, name)
        if limit is None:
            continue
        value = measured(first, controls)
        passed = value >= limit if kind == "at least" else value <= limit
        found.append({"name": name, "what": description.format(system=system), "value": value, "kind": kind, "limit": limit, "met": passed})
    return found


def missed_thresholds(thresholds: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the bars that are not met."""
    return [threshold["name"] for threshold in thresholds if not threshold["met"]]
