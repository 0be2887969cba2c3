"""Check the accuracy of the first checkpoint and its control runs against the limits in eval.thresholds."""

from collections.abc import Mapping

from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.schema.answer_figures import ChoiceFigures
from evaluation.schema.summary_file import ThresholdFigures

_REQUIRED_CONTROLS = {"shuffled_images": "shuffled_images", "min_lead": "shuffled_images", "untuned": "untuned"}


def check_thresholds(settings: EvalConfig) -> None:
    """Raise UsageError for a threshold on a control that is not run."""
    for name, control in _REQUIRED_CONTROLS.items():
        if getattr(settings.thresholds, name) is not None and control not in settings.controls:
            raise UsageError(f"eval.thresholds.{name}: this threshold needs the control {control}, which is not in eval.controls")


def check_against_thresholds(
    thresholds: Thresholds, system: str, first: float, controls: Mapping[str, ChoiceFigures]
) -> list[ThresholdFigures]:
    """Compare the measurements with every threshold that is set. first: VQA accuracy of the checkpoint's first candidates."""
    accuracies = {name: figures.vqa_accuracy for name, figures in controls.items()}
    shuffled = accuracies.get("shuffled_images")
    measurements = (
        ("first", f"{system}, first candidate", first, "at least"),
        ("shuffled_images", "the same with shuffled images", shuffled, "at most"),
        ("untuned", "the same with an untrained connector", accuracies.get("untuned"), "at most"),
        ("min_lead", f"{system}, lead over shuffled images", None if shuffled is None else first - shuffled, "at least"),
    )
    return [
        ThresholdFigures(name, what, value, kind, limit, value >= limit if kind == "at least" else value <= limit)
        for name, what, value, kind in measurements
        if value is not None and (limit := getattr(thresholds, name)) is not None
    ]
