"""Experiment trackers: Weights & Biases, SwanLab, MLflow and Trackio, through transformers' own integration callbacks.

In: rows of the history and sample predictions. Out: what each tracker makes of them. Step numbers are those of the run, over all
stages. Keys and addresses come from the trackers' own environment variables, which are read by their libraries alone. TensorBoard
has its own writer (tensorboard_logger).
"""

import abc
import contextlib
import copy
import importlib
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from errors import Interrupted, UsageError
from training.config import TrackerName
from training.monitoring.metrics_history import Row
from training.monitoring.sample_predictions import Panel, render_panel

PROJECT = "tessera"
"""Project or experiment of the runs, unless the tracker's environment variable names another one."""

TABLE = "validation/predictions"
COLUMNS = ("image", "question", "reference", "prediction")

Status = Literal["finished", "interrupted", "failed"]


class Tracker(Protocol):
    """A place that a run reports to; on rank 0 only."""

    @property
    def name(self) -> str: ...

    run_id: str
    """What a resumed run needs to go on in the same place; "" where nothing is needed."""

    def begin_stage(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None: ...

    def log_row(self, row: Row, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None: ...

    def log_panels(self, panels: Sequence[Panel], step: int) -> None: ...

    def close(self, status: Status) -> None: ...


class IntegrationTracker(abc.ABC):
    """A tracker whose scalars go through transformers' integration callback, and whose sample predictions become its own tables.

    Args:
        run_name: Name of the run, that of the experiment.
        folder: For files of trackers that write any, unless an environment variable names another place.
        settings: The run's settings by dotted key; shown as the run's configuration.
        run_id: The run to go on with; None begins a new one.
    """

    name: ClassVar[TrackerName]

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Any], run_id: str | None):
        self._library: Any = importlib.import_module(self.name)
        self._callback = get_reporting_integration_callbacks([self.name])[0]()
        self._project = os.environ.get(f"{self.name.upper()}_PROJECT", PROJECT)
        self._settings, self._resumed, self._described = dict(settings), run_id is not None, False
        self.run_id = self._start(run_name, folder, run_id)

    @abc.abstractmethod
    def _start(self, run_name: str, folder: Path, run_id: str | None) -> str:
        """Open the run; returns its id."""

    def _init(self, run_name: str, run_id: str | None, **folder: str) -> str:
        """`_start` of Weights & Biases and of SwanLab, which has its functions."""
        init = self._library.init
        return str(init(project=self._project, name=run_name, id=run_id, resume="allow", config=self._settings, **folder).id)

    def log_panels(self, panels: Sequence[Panel], step: int) -> None:
        """Log sample predictions as a table with images."""
        rows = [[self._library.Image(image), *texts] for image, *texts in _rows(panels)]
        # Trainer's steps are the x axis; the library's own count goes on by itself.
        self._library.log({TABLE: self._library.Table(columns=list(COLUMNS), data=rows), "train/global_step": step})

    @abc.abstractmethod
    def close(self, status: Status) -> None:
        """Close the run."""

    def begin_stage(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        """Let the integration log transformers' arguments and the model's config, once."""
        if not self._described:
            self._described = True
            self._callback.on_train_begin(args, state, control, model=model)

    def log_row(self, row: Row, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Log the numbers of a row at its step of the run; Trainer's own counter begins anew in each stage."""
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        state = copy.copy(state)
        state.global_step = row["step"]
        self._callback.on_log(args, state, control, logs=numbers)


class WandbTracker(IntegrationTracker):
    """Weights & Biases. WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT, WANDB_DIR ... are its own variables."""

    name = "wandb"

    def _start(self, run_name: str, folder: Path, run_id: str | None) -> str:
        return self._init(run_name, run_id, dir=os.environ.get("WANDB_DIR", str(folder)))

    def close(self, status: Status) -> None:
        self._library.finish(exit_code=0 if status == "finished" else 1)


class SwanLabTracker(IntegrationTracker):
    """SwanLab. SWANLAB_API_KEY, SWANLAB_MODE, SWANLAB_PROJECT, SWANLAB_LOG_DIR ... are its own variables."""

    name = "swanlab"
    STATES: ClassVar[dict[Status, str]] = {"finished": "success", "interrupted": "aborted", "failed": "crashed"}

    def _start(self, run_name: str, folder: Path, run_id: str | None) -> str:
        return self._init(run_name, run_id, log_dir=os.environ.get("SWANLAB_LOG_DIR", str(folder / "swanlab")))

    def log_panels(self, panels: Sequence[Panel], step: int) -> None:
        # SwanLab has no tables: the texts become the caption.
        images = [
            self._library.Image(image, caption="\n".join(f"{column}: {text}" for column, text in zip(COLUMNS[1:], texts, strict=True)))
            for image, *texts in _rows(panels)
        ]
        self._library.log({TABLE: images}, step=step)

    def close(self, status: Status) -> None:
        self._library.finish(state=self.STATES[status])


class MlflowTracker(IntegrationTracker):
    """MLflow. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_TOKEN ... are its own variables."""

    name = "mlflow"
    STATES: ClassVar[dict[Status, str]] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

    def _start(self, run_name: str, folder: Path, run_id: str | None) -> str:  # noqa: ARG002
        self._library.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        run = self._library.start_run(run_id=run_id, run_name=run_name)
        if run_id is None:
            # A parameter cannot be changed: those of a resumed run stay as they were.
            self._library.log_params({re.sub(r"[^\w\-./ ]", "_", key): value for key, value in self._settings.items()})
        return str(run.info.run_id)

    def begin_stage(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        if self._resumed:
            # Without parameters, for the same reason.
            state = copy.copy(state)
            state.is_world_process_zero = False
        super().begin_stage(args, state, control, model)

    def log_panels(self, panels: Sequence[Panel], step: int) -> None:
        images, *texts = map(list, zip(*_rows(panels), strict=True))
        for i, image in enumerate(images):
            self._library.log_image(image, key=f"{TABLE.replace('/', '_')}_{i}", step=step)
        # Rows of later evaluations are appended to the table.
        table = {"step": [step] * len(images), **dict(zip(COLUMNS[1:], texts, strict=True))}
        self._library.log_table(table, artifact_file=f"{TABLE}.json")

    def close(self, status: Status) -> None:
        self._library.flush_async_logging()
        self._library.end_run(self.STATES[status])


class TrackioTracker(IntegrationTracker):
    """Trackio: local, or in a Hugging Face space with TRACKIO_SPACE_ID and HF_TOKEN; TRACKIO_PROJECT names another project.

    Its integration opens the run at the first stage. A run is found again by its name, so a new one has the time in its name.
    """

    name = "trackio"

    def _start(self, run_name: str, folder: Path, run_id: str | None) -> str:  # noqa: ARG002
        return run_id or f"{run_name}-{datetime.now():%Y%m%d-%H%M%S}"

    def begin_stage(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any) -> None:
        opened = self._described
        args = copy.copy(args)
        args.project, args.run_name = self._project, self.run_id
        super().begin_stage(args, state, control, model)
        if not opened:
            self._library.config.update(self._settings)

    def close(self, status: Status) -> None:  # noqa: ARG002
        if self._described:
            self._library.finish()


TRACKERS: dict[str, type[IntegrationTracker]] = {kind.name: kind for kind in (WandbTracker, SwanLabTracker, MlflowTracker, TrackioTracker)}


def start_tracker(name: TrackerName, run_name: str, folder: Path, settings: Mapping[str, Any], run_id: str | None) -> IntegrationTracker:
    """Open a run; the arguments are those of IntegrationTracker. Raises UsageError when the tracker refuses, with its reason."""
    try:
        with _keeping_signal_handlers():
            return TRACKERS[name](run_name, folder, settings, run_id)
    except Exception as error:  # each library has exceptions of its own: no key, no network, another account
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"train.report_to: {name} cannot open a run: {reason[:300]}") from error


@contextlib.contextmanager
def closing(trackers: Sequence[Tracker]) -> Iterator[None]:
    """Close the trackers at the end, with how the run ended."""
    status: Status = "failed"
    try:
        yield
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        for tracker in trackers:
            try:
                tracker.close(status)
            except Exception as error:  # noqa: BLE001 (of any library: the checkpoints are written, and the next one is to be closed)
                print(f"train.report_to: {tracker.name} was not closed: {error}", flush=True)


class ReportCallback(TrainerCallback):
    """For rank 0 only. An error of a tracker during the run is printed once for each tracker and does not end the run.

    generate_panels: from the model to its sample predictions, called once at each evaluation; None makes none.
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


@contextlib.contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Put back the handlers of SIGINT and SIGTERM, which SwanLab replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _rows(panels: Sequence[Panel]) -> list[tuple[Image.Image, str, str, str]]:
    """Rows of COLUMNS. The image shows the whole panel: a sample may have several images, or none."""
    return [(render_panel(panel), panel.question, panel.reference, panel.answer) for panel in panels]
