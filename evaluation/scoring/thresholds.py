"""Check the accuracy of the first checkpoint and its control runs against the limits in eval.thresholds."""

from collections.abc import Callable, Iterable

from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.schema.comparison_figures import ThresholdFigures

Controls = dict[str, float]
"""Control -> VQA accuracy of the control run."""

_REQUIRED_CONTROLS = {"shuffled_images": "shuffled_images", "min_lead": "shuffled_images", "untuned": "untuned"}
_MEASUREMENTS: dict[str, tuple[str, str, Callable[[float, Controls], float]]] = {
    "first": ("{system}, first candidate", "at least", lambda first, _: first),
    "shuffled_images": ("the same with shuffled images", "at most", lambda _, controls: controls["shuffled_images"]),
    "untuned": ("the same with an untrained connector", "at most", lambda _, controls: controls["untuned"]),
    "min_lead": ("{system}, lead over shuffled images", "at least", lambda first, controls: first - controls["shuffled_images"]),
}


def check_thresholds(settings: EvalConfig) -> None:
    """Raise UsageError for a threshold on a control that is not run."""
    for name, control in _REQUIRED_CONTROLS.items():
        if getattr(settings.thresholds, name) is not None and control not in settings.controls:
            raise UsageError(f"eval.thresholds.{name}: this threshold needs the control {control}, which is not in eval.controls")


def check_against_thresholds(thresholds: Thresholds, system: str, first: float, controls: Controls) -> list[ThresholdFigures]:
    """Compare the measurements with every threshold that is set. All numbers are fractions in 0..1.

    Args:
        thresholds: the limits
        system: name of the checkpoint
        first: VQA accuracy of its first candidates
        controls: VQA accuracy of its control runs

    Returns:
        One row per threshold.
    """
    rows = []
    for name, (description, kind, measured) in _MEASUREMENTS.items():
        limit = getattr(thresholds, name)
        if limit is None:
            continue
        value = measured(first, controls)
        passed = value >= limit if kind == "at least" else value <= limit
        rows.append(ThresholdFigures(name, description.format(system=system), value, kind, limit, passed))
    return rows


def missed_thresholds(thresholds: Iterable[ThresholdFigures]) -> list[str]:
    """Names of the thresholds that are not met."""
    return [threshold.name for threshold in thresholds if not threshold.met]
