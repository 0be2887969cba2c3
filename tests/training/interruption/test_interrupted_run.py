"""Training runs that a signal stops: the step is finished, a checkpoint written, and going on gives the uninterrupted run."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

import config as configuration
from tests.training.test_run import state, weights
from tests.training.test_train_command import STAGES, command, environment, launcher
from training.run import TrainingRun
from training.stage_callback import StageCallback
from training.stage_trainer import StageTrainer

Workspace = Callable[..., Path]
DROPOUT = {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3}}


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals, method: str = "on_step_end") -> None:
    """Send this process a signal at the end of a stage's step, before the callback that looks for it."""
    original = getattr(StageCallback, method)

    def signalling(self: StageCallback, args: Any, state: TrainerState, *more: Any, **kwargs: Any) -> None:
        original(self, args, state, *more, **kwargs)
        if state.global_step == step:
            monkeypatch.setattr(StageCallback, method, original)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(StageCallback, method, signalling)


def measured(checkpoint: Path) -> list[dict[str, float]]:
    """The history without what depends on the clock."""
    kept = {"step", "loss", "grad_norm", "eval_loss", "learning_rate/lora", "learning_rate/connector"}
    return [{key: value for key, value in row.items() if key in kept} for row in state(checkpoint).history]


CASES = [
    (signal.SIGINT, 2, "on_step_end", 3),  # a step that is evaluated
    (signal.SIGTERM, 2, "on_evaluate", 3),
    (signal.SIGTERM, 4, "on_step_end", 5),  # the last step
]
"""Signal, the step of the second stage at which it comes, the callback in which it comes, the step of the run that is saved."""


@pytest.mark.slow
def test_a_stopped_run_writes_a_checkpoint_and_goes_on_bit_for_bit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace(DROPOUT, stages=STAGES, per_device_train_batch_size=1, gradient_accumulation_steps=4, eval_steps=2)
    last = TrainingRun(configuration.load(path)).train()
    last.parent.rename("uninterrupted")
    expected = Path("uninterrupted") / last.name
    for number, step, method, saved in CASES:
        capsys.readouterr()
        signal_at(monkeypatch, step, number, method)
        assert command("--config", path, "train.logging_steps=1") == 128 + number
        printed = capsys.readouterr().err.splitlines()[-1]
        assert printed.startswith(f"{number.name} after step {saved}: checkpoints/toy/checkpoint-{saved} is written; go on with: python ")
        assert printed.endswith(f" --config {path} train.logging_steps=1 --resume auto")
        assert state(last.parent / f"checkpoint-{saved}").finished == (saved == 5)

        assert command("--config", path, "train.logging_steps=1", "--resume", "auto") == 0
        assert measured(last) == measured(expected), (step, method)
        resumed = weights(last)
        assert all((resumed[key] == value).all() for key, value in weights(expected).items()), (step, method)
        shutil.rmtree(last.parent)


def test_a_signal_at_the_end_of_the_first_stage_leaves_the_second_for_later(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace(stages=STAGES)
    signal_at(monkeypatch, 1, signal.SIGTERM)
    assert command("--config", path) == 143
    assert [folder.name for folder in Path("checkpoints/toy").iterdir()] == ["checkpoint-1"]
    assert "stage tune" not in capsys.readouterr().out


def test_a_checkpoint_is_written_before_the_evaluation_that_is_due(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    evaluate = StageTrainer.evaluate

    def looking(self: StageTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        found.append(sorted(folder.name for folder in Path("checkpoints/toy").glob("checkpoint-*")))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "evaluate", looking)
    signal_at(monkeypatch, 1, signal.SIGTERM)
    assert command("--config", workspace(eval_steps=1)) == 143
    assert found == [["checkpoint-1"]]


def test_before_the_first_step_a_signal_ends_the_run_with_a_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StageTrainer, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert command("--config", workspace()) == 130
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("SIGINT before a stage's first step was done: there was nothing to save; go on with: python ")
    )
    assert not Path("checkpoints/toy").exists()


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_ranks_at_one_step(workspace: Workspace) -> None:
    path = workspace(DROPOUT, stages=STAGES, per_device_train_batch_size=1, dataloader_num_workers=1, save_steps=100)
    program = [*launcher(), "--config", str(path), "train.stages.1.epochs=50"]
    process = subprocess.Popen(
        program, env=environment(ACCELERATE_USE_CPU="true"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate()
    assert process.returncode != 0
    written = max(Path("checkpoints/toy").glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    step = int(written.name.rpartition("-")[2])
    assert 3 <= step < 100, errors
    assert not state(written).finished
    shown = [line for line in errors.splitlines() if "go on with:" in line]
    assert len(shown) == 1, errors
    assert shown[0].startswith(f"SIGTERM after step {step}: {written} is written; go on with: ACCELERATE_USE_CPU=true ")
    assert " --multi_gpu " in shown[0] and shown[0].endswith(f"--config {path} train.stages.1.epochs=50 --resume auto")
    assert "DataLoader worker" not in errors
