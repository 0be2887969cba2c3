"""A resumed run may have longer stages and more of them: what its learning rate does then, and what cannot be changed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errors import UsageError
from tests.training.test_run import losses, run, state
from training.checkpointing.resume import TRAINER_FOLDER, RunState
from training.checkpointing.starting_point import StartingPoint, starting_point
from training.config import StageConfig

Workspace = Callable[..., Path]
ALIGN = {"name": "align", "train": ["connector"], "max_steps": 1}
TUNE = {"name": "tune", "train": ["connector", "lora"], "epochs": 10, "max_steps": 2}


def rates(checkpoint: Path) -> list[float]:
    return losses(checkpoint, "learning_rate/lora")


@pytest.mark.slow
def test_a_finished_run_goes_on_when_its_last_stage_becomes_longer(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(stages=[ALIGN, TUNE], warmup_steps=0.0)
    run(path)
    capsys.readouterr()
    longer = run(path, "train.stages.1.max_steps=4", resume="auto")
    assert longer.name == "checkpoint-5"
    # The cosine over four steps, from its third step on; the first two followed the one over two steps.
    cosine = [0.5e-3 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates(longer) == pytest.approx([1e-3, 0.5e-3, *cosine[2:]])
    assert (
        "stage tune: 4 steps instead of 2; the learning rate goes on at step 2 of the cosine schedule over all 4: "
        "connector 0.00e+00 -> 5.00e-04, lora 0.00e+00 -> 5.00e-04" in capsys.readouterr().out
    )
    assert (longer.parent / "checkpoint-3" / TRAINER_FOLDER / "optimizer.pt").is_file()
    assert not (longer.parent / "checkpoint-1" / TRAINER_FOLDER / "optimizer.pt").exists()


@pytest.mark.slow
def test_more_epochs_and_one_more_stage_are_allowed_at_once(workspace: Workspace) -> None:
    path = workspace(stages=[{**TUNE, "epochs": 1}], per_device_train_batch_size=4)
    run(path)
    stages = [{**TUNE, "epochs": 2, "max_steps": None}, {"name": "more", "train": ["lora"], "max_steps": 1}]
    last = run(path, f"train.stages={json.dumps(stages)}", resume="auto")
    assert [(row["step"], row["stage"]) for row in state(last).history if "loss" in row] == [
        (1, "tune"), (2, "tune"), (3, "tune"), (4, "tune"), (5, "more"),
    ]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder with an optimizer state, of a stage that was planned to have ten steps."""
    (tmp_path / TRAINER_FOLDER).mkdir()
    (tmp_path / TRAINER_FOLDER / "trainer_state.json").write_text('{"max_steps": 10}')
    return tmp_path


def saved(finished: bool, step: int, stage: int = 1, **length: Any) -> RunState:
    """The state of a run of two stages, of which the first had three steps."""
    stages = [{"name": "align", "epochs": 1.0, "max_steps": 3}, {"name": "tune", "epochs": 1.0, "max_steps": None, **length}]
    return RunState(stage, 3 if stage else 0, step, finished, {"train.stages": stages}, [])


def stages(**length: Any) -> list[StageConfig]:
    return [StageConfig(name="align", train=("connector",), max_steps=3), StageConfig(name="tune", train=("lora",), **length)]


def test_a_run_without_a_checkpoint_starts_at_the_first_step() -> None:
    assert starting_point(None, None, stages(), [3, 10]) == StartingPoint(0, 0, False)


def test_a_stage_of_the_same_length_goes_on_where_it_was(checkpoint: Path) -> None:
    assert starting_point(checkpoint, saved(False, 8), stages(), [3, 10]) == StartingPoint(1, 3, True)
    assert starting_point(checkpoint, saved(True, 13), stages(), [3, 10]) == StartingPoint(2, 13, False)


def test_a_stage_that_stopped_early_has_ended_although_it_did_not_do_all_its_steps(checkpoint: Path) -> None:
    assert starting_point(checkpoint, saved(True, 8), stages(), [3, 10]).stage == 2


@pytest.mark.parametrize("finished", [True, False])
def test_a_longer_stage_goes_on_and_knows_its_length_of_before(checkpoint: Path, finished: bool) -> None:
    point = starting_point(checkpoint, saved(finished, 13 if finished else 8), stages(epochs=2.0), [3, 20])
    assert point == StartingPoint(1, 3, True, steps_before=10)


def test_an_unfinished_stage_may_become_shorter_but_not_than_what_is_done(checkpoint: Path) -> None:
    assert starting_point(checkpoint, saved(False, 8), stages(max_steps=6), [3, 6]).steps_before == 10
    with pytest.raises(UsageError, match=r"train\.stages\.1: stage tune has done 5 steps and would have 4 \(max_steps=4, epochs=1\)"):
        starting_point(checkpoint, saved(False, 8), stages(max_steps=4), [3, 4])
    with pytest.raises(UsageError, match=r"stage tune has done 5 steps, all that it would have .* at least one step more"):
        starting_point(checkpoint, saved(False, 8), stages(max_steps=5), [3, 5])


def test_a_length_that_changes_nothing_is_said(checkpoint: Path) -> None:
    point = starting_point(checkpoint, saved(True, 13), stages(max_steps=50), [3, 10])
    assert point == StartingPoint(2, 13, note="train.stages.1: max_steps from null to 50 changes nothing, tune has 10 steps")


def test_a_stage_that_another_one_followed_cannot_become_longer(tmp_path: Path) -> None:
    longer = [StageConfig(name="align", train=("connector",), max_steps=9), *stages()[1:]]
    with pytest.raises(UsageError, match=r"train\.stages\.0: max_steps from 3 to 9 cannot be changed, .* holds no optimizer state"):
        starting_point(tmp_path, saved(True, 3, stage=0), longer, [9, 10])
