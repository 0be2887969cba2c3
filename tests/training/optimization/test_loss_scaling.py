"""Training in fp16 with a gradient scaler, on a CPU. The scaler is torch's own and really steps."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import config as configuration
from errors import TesseraError
from model.siglip_qwen.family import SiglipQwenFamily
from training.checkpointing.resume import TRAINER_FOLDER, read_run_state
from training.optimization import loss_scaling
from training.run import TrainingRun

Workspace = Callable[..., Path]
StartScale = Callable[..., None]
STAGE = {"name": "tune", "train": ["connector", "lora"], "max_steps": 4}


def run(path: Path, *overrides: str, resume: str | None = None) -> Path:
    """fp16 is slow on a CPU: steps of one sample, and one validation sample."""
    small = ["train.precision=fp16", "train.per_device_train_batch_size=1", "train.eval_samples=1"]
    return TrainingRun(configuration.load(path, [*small, *overrides]), resume).train()


def rows(checkpoint: Path) -> list[dict[str, Any]]:
    return [row for row in read_run_state(checkpoint / TRAINER_FOLDER).history if "loss" in row]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in load_file(checkpoint / "adapter_model.safetensors").items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def start_scale(monkeypatch: pytest.MonkeyPatch) -> StartScale:
    """Sets the scale that the scaler starts with, and after how many good steps it grows."""
    scaler = torch.amp.GradScaler
    return lambda scale, growth=2000: monkeypatch.setattr(
        torch.amp, "GradScaler", partial(scaler, init_scale=scale, growth_interval=growth)
    )


def test_fp16_learns_what_fp32_learns_with_trained_weights_in_fp32(workspace: Workspace) -> None:
    path = workspace(stages=[STAGE])
    scaled, exact = run(path), run(path, "train.precision=fp32", "name=exact", "data.folder=data/toy")
    assert [row["loss"] for row in rows(scaled)] == pytest.approx([row["loss"] for row in rows(exact)], rel=1e-3)
    assert [row["grad_norm"] for row in rows(scaled)] == pytest.approx([row["grad_norm"] for row in rows(exact)], rel=5e-2)
    assert {tensor.dtype for tensor in weights(scaled).values()} == {torch.float32}
    assert {row["loss_scale"] for row in rows(scaled)} == {65536.0}
    assert not any("loss_scale" in row for row in rows(exact))
    assert read_run_state(scaled / TRAINER_FOLDER).settings["train.precision"] == "fp16"


def test_a_skipped_step_changes_no_weight_does_not_advance_the_schedule_and_is_not_logged(
    workspace: Workspace, start_scale: StartScale, capsys: pytest.CaptureFixture[str]
) -> None:
    start_scale(2.0**20)
    last = run(workspace(stages=[{**STAGE, "max_steps": 7}], save_steps=1, save_total_limit=9))
    logged, skipped = rows(last), int(rows(last)[0]["skipped_steps"])
    assert 1 <= skipped < 6
    assert logged[0]["step"] == skipped + 1
    assert sum(row["skipped_steps"] for row in logged) + len(logged) == 7
    assert all(row["loss"] < 20 and row["grad_norm"] < 1e3 for row in logged)
    assert logged[0]["loss_scale"] == 2.0 ** (20 - skipped)
    assert f"loss scale {2 ** (20 - skipped):,}, {skipped} skipped" in capsys.readouterr().out
    first, second = (weights(last.parent / f"checkpoint-{step}") for step in (skipped, skipped + 1))
    assert same(weights(last.parent / "checkpoint-1"), first)
    assert not same(first, second)
    schedule = torch.load(last.parent / f"checkpoint-{skipped + 1}" / TRAINER_FOLDER / "scheduler.pt", weights_only=True)
    assert schedule["last_epoch"] == 1


@pytest.mark.slow
def test_a_step_with_an_infinite_loss_is_left_out_of_the_logged_mean(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    loss_of = SiglipQwenFamily.loss

    def overflow_once(*args: Any) -> torch.Tensor:
        loss = loss_of(*args)
        losses.append(loss.item())
        return loss * torch.inf if len(losses) == 2 else loss

    monkeypatch.setattr(SiglipQwenFamily, "loss", overflow_once)
    logged = rows(run(workspace(stages=[STAGE], logging_steps=4)))
    assert [(row["step"], row["skipped_steps"]) for row in logged] == [(1, 0), (4, 1)]
    assert logged[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2)


@pytest.mark.slow
def test_the_scale_grows_and_a_resumed_run_goes_on_with_it(workspace: Workspace, start_scale: StartScale) -> None:
    start_scale(2.0**8, growth=2)
    path = workspace(stages=[STAGE], save_steps=2, save_total_limit=9)
    last = run(path)
    assert [row["loss_scale"] for row in rows(last)] == [2.0**8, 2.0**9, 2.0**9, 2.0**10]
    uninterrupted = weights(last)
    shutil.rmtree(last)
    start_scale(2.0**2, growth=2)
    resumed = run(path, resume="auto")
    assert same(uninterrupted, weights(resumed))
    assert [row["loss_scale"] for row in rows(resumed)][2:] == [2.0**9, 2.0**10]


def test_a_run_whose_gradients_never_fit_into_fp16_ends_with_one_sentence(
    workspace: Workspace, start_scale: StartScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_scale(2.0**100)
    monkeypatch.setattr(loss_scaling, "MAX_SKIPPED_STEPS", 3)
    path = workspace(stages=[STAGE], save_steps=1)
    with pytest.raises(TesseraError, match=r"infinite gradients in 3 optimizer steps in a row: .* fp16; use a GPU with bf16"):
        run(path)
    shutil.rmtree("checkpoints")
    monkeypatch.setattr(loss_scaling, "MAX_SKIPPED_STEPS", 40)
    with pytest.raises(TesseraError, match="infinite gradients in all 4 optimizer steps"):
        run(path)
    assert not Path("checkpoints/toy/checkpoint-4").exists()
