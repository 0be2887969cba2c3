"""Where a run begins or goes on: which stage, at which step, and whether that stage has become longer since its checkpoint.

A stage's length may change on a resume: more epochs, another max_steps, and any number of further stages. Its schedule is then
computed anew for the new length and the run goes on at the same step of the new curve.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UsageError
from training.checkpointing.resume import LENGTH_KEYS, TRAINER_FOLDER, RunState
from training.config import StageConfig

TRAINER_STATE_FILE = "trainer_state.json"
"""Trainer's own state; a checkpoint without it has no optimizer state either."""


@dataclass(frozen=True)
class StartingPoint:
    """The first stage that a run trains."""

    stage: int = 0
    """Index in train.stages; the number of stages when all have ended."""
    first_step: int = 0
    """Optimizer steps of all earlier stages."""
    resuming: bool = False
    """Whether the stage goes on from the optimizer state of the checkpoint; otherwise it begins."""
    steps_before: int | None = None
    """Optimizer steps of the stage before its length was changed; None when it was not."""
    note: str | None = None
    """What to say about a changed key that changes nothing."""


def check_max_steps(checkpoint: Path, state: RunState, stages: Sequence[StageConfig]) -> None:
    """Raise UsageError when the checkpoint's stage has done more than its max_steps. Needs no data, unlike `starting_point`."""
    if state.stage < len(stages):
        limit, done = stages[state.stage].max_steps, state.step - state.first_step
        if limit is not None and limit < done:
            raise _too_short(checkpoint, state, stages[state.stage], limit)


def starting_point(checkpoint: Path | None, state: RunState | None, stages: Sequence[StageConfig], steps: Sequence[int]) -> StartingPoint:
    """Where the run begins or goes on.

    Args:
        checkpoint: The checkpoint to resume from; None begins at the first stage.
        state: Its run state.
        stages: train.stages.
        steps: Optimizer steps of each stage.

    Raises UsageError when a stage would be shorter than what is done, or has ended without an optimizer state to go on from.
    """
    if checkpoint is None or state is None:
        return StartingPoint()
    stage, done = stages[state.stage], state.step - state.first_step
    planned, changed = steps[state.stage], _changed_length(state, stage)
    if planned < done and (changed or not state.finished):
        raise _too_short(checkpoint, state, stage, planned)
    note = f"train.stages.{state.stage}: {_named(changed)} changes nothing, {stage.name} has {planned:,} steps" if changed else None
    if state.finished and (planned == done or not changed):
        return StartingPoint(state.stage + 1, state.step, note=note)
    if planned == done:
        raise _length_error(checkpoint, state, stage, ", all that it would have", ", but not ended; give it at least one step more")
    before = _steps_before(checkpoint)
    if before is None:
        raise UsageError(
            f"--resume {checkpoint}: train.stages.{state.stage}: {_named(changed)} cannot be changed, since stage {stage.name} has ended "
            "and its checkpoint holds no optimizer state (it stopped early, or another stage followed); add a stage instead"
        )
    if before != planned:
        return StartingPoint(state.stage, state.first_step, True, before)
    return StartingPoint(state.stage, state.first_step, True, note=note and f"{note} as before")


def _changed_length(state: RunState, stage: StageConfig) -> dict[str, tuple[Any, Any]]:
    """Keys of the stage's length with their values before and now, where they differ."""
    known = state.settings["train.stages"][state.stage]
    return {key: (known[key], getattr(stage, key)) for key in sorted(LENGTH_KEYS) if known[key] != getattr(stage, key)}


def _steps_before(checkpoint: Path) -> int | None:
    """Optimizer steps that the checkpoint's stage was planned to have; None without an optimizer state."""
    path = checkpoint / TRAINER_FOLDER / TRAINER_STATE_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["max_steps"]) if path.is_file() else None


def _named(changed: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} from {_shown(before)} to {_shown(now)}" for key, (before, now) in changed.items())


def _too_short(checkpoint: Path, state: RunState, stage: StageConfig, planned: int) -> UsageError:
    return _length_error(checkpoint, state, stage, f" and would have {planned:,}", "; a stage cannot become shorter than what is done")


def _length_error(checkpoint: Path, state: RunState, stage: StageConfig, planned: str, advice: str) -> UsageError:
    return UsageError(
        f"--resume {checkpoint}: train.stages.{state.stage}: stage {stage.name} has done {state.step - state.first_step:,} steps{planned} "
        f"(max_steps={_shown(stage.max_steps)}, epochs={stage.epochs:g}){advice}"
    )


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
