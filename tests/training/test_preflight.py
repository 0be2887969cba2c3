"""What is wrong with the arguments is told before torch is imported and before a sample is read."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import config as configuration
from errors import UsageError
from model.checkpoint_manifest import write_manifest
from tests.pipeline import ROOT
from training.checkpointing.resume import TRAINER_FOLDER, RunState, config_settings
from training.preflight import check_before_loading

Workspace = Callable[..., Path]


def checkpoint(path: Path, step: int, stage_step: int = 1) -> Path:
    """A folder that looks like a checkpoint of the run at this step, without weights."""
    folder = Path("checkpoints/toy") / f"checkpoint-{step}"
    (folder / TRAINER_FOLDER).mkdir(parents=True)
    RunState(0, 0, stage_step, False, config_settings(configuration.load(path)), []).write(folder / TRAINER_FOLDER)
    write_manifest(folder)
    return folder


def message(path: Path, *overrides: str, resume: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        check_before_loading(configuration.load(path, list(overrides)), resume)
    return str(error.value)


def test_a_wrong_checkpoint_folder_is_told_without_torch_and_leaves_nothing(workspace: Workspace) -> None:
    program = (
        "import sys, cli, train\n"
        "try: cli.run(train.main, train.parser)\n"
        "finally: assert not {'torch', 'transformers', 'pyarrow'} & sys.modules.keys()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--config", str(workspace()), "--resume", "no/such/folder"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stderr == (
        "error: --resume no/such/folder: the folder does not exist; --resume auto takes the latest one in checkpoints/toy\n"
    )
    assert result.returncode == 2
    assert not Path("checkpoints").exists()


def test_an_earlier_run_of_the_name_is_not_overwritten(workspace: Workspace) -> None:
    path = workspace()
    checkpoint(path, 3)
    assert "checkpoint-3 already exists: continue with --resume auto" in message(path)


def test_a_checkpoint_that_is_not_the_latest_is_refused(workspace: Workspace) -> None:
    path = workspace()
    earlier, later = checkpoint(path, 3), checkpoint(path, 5)
    assert message(path, resume=str(earlier)).startswith(f"--resume {earlier}: {later} is later")


def test_another_setting_than_the_checkpoints_is_told(workspace: Workspace) -> None:
    path = workspace()
    folder = checkpoint(path, 1)
    assert message(path, "train.weight_decay=0.5", resume="auto").startswith(
        f"--resume {folder}: trained with other settings: train.weight_decay was 0.0, is 0.5; "
    )


def test_a_stage_shorter_than_what_is_done_is_told(workspace: Workspace) -> None:
    path = workspace()
    checkpoint(path, 7, stage_step=7)
    assert "stage tune has done 7 steps and would have 5 (max_steps=5, epochs=1)" in message(
        path, "train.stages.0.max_steps=5", resume="auto"
    )


def test_missing_data_is_told(workspace: Workspace) -> None:
    path = workspace()
    Path("data/toy/samples.parquet").unlink()
    assert message(path) == "data/toy/samples.parquet does not exist; run python tools/preprocess.py first"


def test_a_tracker_that_is_not_installed_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *package: None if name == "trackio" else find(name, *package))
    assert message(workspace(), "train.report_to=[tensorboard, trackio]") == (
        "train.report_to: trackio is not installed; pip install trackio (or 'tessera-vlm[trackio]')"
    )


def test_an_unknown_tracker_is_told(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match=r"train\.report_to\.0: input should be 'tensorboard', 'wandb', 'swanlab', 'mlflow' or 'trackio'"):
        configuration.load(workspace(), ["train.report_to=comet"])


@pytest.mark.parametrize(
    ("value", "names"),
    [("none", ()), ("wandb", ("wandb",)), ("[]", ()), ("[tensorboard, wandb, wandb]", ("tensorboard", "wandb"))],
)
def test_one_tracker_a_list_or_none_may_be_named(workspace: Workspace, value: str, names: tuple[str, ...]) -> None:
    assert configuration.load(workspace(), [f"train.report_to={value}"]).train.report_to == names


def test_a_damaged_run_state_is_skipped_as_the_run_will_skip_the_checkpoint(workspace: Workspace) -> None:
    path = workspace()
    checkpoint(path, 3)
    (checkpoint(path, 5) / TRAINER_FOLDER / "run_state.json").write_text("{", encoding="utf-8")
    assert "checkpoint-3: trained with other settings: train.seed" in message(path, "train.seed=1", resume="auto")


def test_a_start_that_does_not_exist_is_told_unless_the_run_has_begun(workspace: Workspace) -> None:
    path = workspace(init_from="gone")
    assert message(path).startswith("train.init_from: gone does not exist")
    checkpoint(path, 3)
    check_before_loading(configuration.load(path), "auto")
