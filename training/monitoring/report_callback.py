"""Passes log steps and sample predictions on to everything that a run reports to."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.monitoring.metrics_history import Row
from training.monitoring.prediction_panels import Panel
from training.monitoring.trackers import Tracker


class ReportCallback(TrainerCallback):
    """For rank 0 only. An error of a tracker during the run is printed once for each tracker and does not end the run.

    Args:
        trackers: Where to report to; the caller closes them.
        generate_panels: From the model to its sample predictions, called once at each evaluation; None makes none.
    """

    def __init__(self, trackers: Sequence[Tracker], generate_panels: Callable[[nn.Module], list[Panel]] | None):
        self._trackers, self._generate_panels = trackers, generate_panels
        self._step = 0
        self._failed: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_kwargs: Any
    ) -> None:
        self._report(lambda tracker: tracker.begin_stage(args, state, control, model))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Row, **_kwargs: Any) -> None:
        self._step = int(logs["step"])
        self._report(lambda tracker: tracker.log_row(logs, args, state, control))

    def on_evaluate(self, *_args: Any, model: nn.Module, **_kwargs: Any) -> None:
        panels = self._generate_panels(model) if self._generate_panels and self._trackers else []
        if panels:
            self._report(lambda tracker: tracker.log_panels(panels, self._step))

    def _report(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 (of any library: a tracker that is away must not end a run of days)
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    print(f"train.report_to: {tracker.name} failed at step {self._step:,}, the run goes on: {error}", flush=True)
