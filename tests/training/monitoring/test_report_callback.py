"""Log steps and sample predictions go to every tracker, and a tracker that fails does not end the run."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn
from transformers import TrainerControl, TrainerState

from errors import Interrupted, UsageError
from training.monitoring import trackers as module
from training.monitoring.metrics_history import Row
from training.monitoring.sample_predictions import Panel
from training.monitoring.trackers import ReportCallback, closing, start_tracker

PANELS = [Panel([], "question", "reference", "answer")]


class FakeTracker:
    """Records what it is given; fails on request."""

    run_id = "1"

    def __init__(self, name: str, fails: bool = False):
        self.name, self.fails = name, fails
        self.calls: list[Any] = []

    def _record(self, call: Any) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.calls.append(call)

    def begin_stage(self, *_args: Any) -> None:
        self._record("stage")

    def log_row(self, row: Row, *_args: Any) -> None:
        self._record(row)

    def log_panels(self, panels: Sequence[Panel], step: int) -> None:
        self._record((list(panels), step))

    def close(self, status: str) -> None:
        self._record(status)


def report(*trackers: FakeTracker) -> None:
    callback = ReportCallback(trackers, lambda _: PANELS)
    unused: Any = None
    callback.on_train_begin(unused, TrainerState(), TrainerControl())
    for step in (7, 8):
        callback.on_log(unused, TrainerState(), TrainerControl(), logs={"step": step, "stage": "tune", "loss": 1.0})
    callback.on_evaluate(model=nn.Linear(1, 1))


def test_every_tracker_gets_rows_and_predictions_at_the_runs_step() -> None:
    trackers = FakeTracker("one"), FakeTracker("two")
    report(*trackers)
    rows = [{"step": step, "stage": "tune", "loss": 1.0} for step in (7, 8)]
    assert [tracker.calls for tracker in trackers] == [["stage", *rows, (PANELS, 8)]] * 2


def test_a_tracker_that_fails_is_named_once_and_the_others_still_get_everything(capsys: pytest.CaptureFixture[str]) -> None:
    away, present = FakeTracker("away", fails=True), FakeTracker("present")
    report(away, present)
    assert len(present.calls) == 4
    assert capsys.readouterr().out == "train.report_to: away failed at step 0, the run goes on: no network\n"


def test_predictions_are_not_made_when_nobody_wants_them() -> None:
    def unwanted(_model: nn.Module) -> list[Panel]:
        raise AssertionError

    ReportCallback([], unwanted).on_evaluate(model=nn.Linear(1, 1))


@pytest.mark.parametrize(("error", "status"), [(None, "finished"), (Interrupted(15), "interrupted"), (ValueError(), "failed")])
def test_trackers_are_told_how_the_run_ended(error: BaseException | None, status: str) -> None:
    trackers = [FakeTracker("away", fails=True), FakeTracker("present")]
    try:
        with closing(trackers):
            if error is not None:
                raise error
    except (Interrupted, ValueError) as raised:
        assert raised is error
    assert trackers[1].calls == [status]


def test_a_tracker_that_refuses_to_open_a_run_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refuse(*_arguments: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(module.TRACKERS, "wandb", refuse)
    with pytest.raises(UsageError, match=r"^train\.report_to: wandb cannot open a run: no API key configured$"):
        start_tracker("wandb", "toy", tmp_path, {}, None)


def test_scalars_stand_at_the_step_of_the_run_and_words_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Integration:
        def on_log(self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float]) -> None:
            logged.append((state.global_step, logs))

    class Silent(module.IntegrationTracker):
        name = "tensorboard"  # a library that is there

        def _start(self, *_arguments: Any) -> str:
            return "id"

        def log_panels(self, *_arguments: Any) -> None: ...

        def close(self, *_arguments: Any) -> None: ...

    monkeypatch.setattr(module, "get_reporting_integration_callbacks", lambda _: [Integration])
    arguments: Any = None
    state = TrainerState(global_step=2)
    row = {"step": 42, "stage": "tune", "loss": 0.5, "learning_rate/lora": 1e-3}
    Silent("toy", tmp_path, {}, None).log_row(row, arguments, state, TrainerControl())
    assert logged == [(42, {"loss": 0.5, "learning_rate/lora": 1e-3})]
    assert state.global_step == 2
