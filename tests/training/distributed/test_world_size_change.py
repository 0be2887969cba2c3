"""A run goes on with another number of processes: every optimizer step has the samples, loss and gradients that it would have had."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import config as configuration
from dataset.loading.samplers import StepShape
from errors import UsageError
from tests.training.conftest import write_data
from tests.training.test_run import losses, weights
from tests.training.test_train_command import run_on_two_ranks
from training.checkpointing.world_size_change import resumed_batching, with_resumed_batching
from training.config import TrainConfig
from training.data_loading import Batching
from training.run import TrainingRun
from training.run_setup import Machine

CPU = torch.device("cpu")


def before(processes: int, accumulation: int, batch_size: int) -> dict[str, Any]:
    return {
        "train.num_processes": processes,
        "train.gradient_accumulation_steps": accumulation,
        "train.per_device_train_batch_size": batch_size,
    }


def resumed(processes: int, settings: dict[str, Any], **train_settings: Any) -> Batching:
    config = TrainConfig(**train_settings)
    return resumed_batching(Batching.of(config, CPU, "fp32", processes), config, settings)


def test_gradient_accumulation_is_adapted_to_the_number_of_processes() -> None:
    batching = resumed(2, before(1, 4, 8), gradient_accumulation_steps=4, per_device_train_batch_size=8)
    assert batching.step == StepShape(batches=4, micro_batches=2)
    assert batching.per_device_train_batch_size == batching.micro_batch_size == 8


def test_micro_batches_may_have_another_size_when_the_samples_of_a_step_stay() -> None:
    batching = resumed(2, before(1, 1, 16), per_device_train_batch_size=8)
    assert batching.step == StepShape(batches=1, micro_batches=1)
    assert (batching.per_device_train_batch_size, batching.micro_batch_size) == (16, 8)
    assert str(batching).startswith("8 samples of similar length")


@pytest.mark.parametrize(
    ("processes", "settings", "train_settings", "advice"),
    [
        (2, before(1, 1, 16), {}, "set train.per_device_train_batch_size=8 train.gradient_accumulation_steps=1"),
        (3, before(2, 1, 16), {}, "has 32 samples .* which 3 processes cannot share; resume with a number that divides 32"),
        (
            2,
            before(1, 6, 4),
            {"gradient_accumulation_steps": 2},
            "set train.per_device_train_batch_size=12 train.gradient_accumulation_steps=1",
        ),
        (2, before(1, 3, 1), {"batching": "packed"}, "has 3 packed rows .* which 2 processes cannot share"),
        (2, before(1, 4, 1), {"batching": "packed", "gradient_accumulation_steps": 8}, "set train.gradient_accumulation_steps=2"),
    ],
)
def test_settings_that_would_do_are_named_when_the_samples_of_a_step_do_not_divide(
    processes: int, settings: dict[str, Any], train_settings: dict[str, Any], advice: str
) -> None:
    with pytest.raises(UsageError, match=advice):
        resumed(processes, settings, **train_settings)


def test_zero_cannot_go_on_with_another_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    config = TrainConfig(gradient_accumulation_steps=4)
    machine = Machine(PartialState(cpu=True), Batching.of(config, CPU, "fp32", 1), "fp32")
    with_resumed_batching(machine, config, before(1, 4, 16))
    with pytest.raises(UsageError, match="optimizer state of 2 processes can be read by 2 only"):
        with_resumed_batching(machine, config, before(2, 2, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "tolerance"),
    [
        ("sgd", 1e-5),
        # AdamW divides a gradient by its own size, so a difference of 1e-7 in a gradient near zero moves a weight by up to the
        # learning rate, here 1e-3.
        ("adamw", 2e-3),
    ],
)
def test_a_run_that_goes_on_with_two_processes_and_back_with_one_is_the_uninterrupted_run(
    workspace: Callable[..., Path], optim: str, tolerance: float
) -> None:
    shutil.rmtree("data/toy")
    write_data(Path("data/toy"), training=20, validation=1)
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    # Ten batches: steps of 4, 4 and 2; the third one is over the border of the epochs.
    path = workspace(
        stages=[stage],
        gradient_accumulation_steps=4,
        save_steps=1,
        save_total_limit=9,
        eval_steps=1,
        optim=optim,
        per_device_train_batch_size=3,
    )
    uninterrupted = TrainingRun(configuration.load(path)).train()
    folder = uninterrupted.parent.rename("uninterrupted")
    last = folder / uninterrupted.name

    shutil.copytree(folder / "checkpoint-1", uninterrupted.parent / "checkpoint-1")
    result = run_on_two_ranks("--config", path, "--resume", "auto")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 validation samples for 2 processes: some have none to validate on" in result.stdout
    assert "2 micro-batches on each of 2 processes, where the run began 4 on each of 1" in result.stdout
    compare(uninterrupted, last, tolerance)

    two_processes = uninterrupted.parent.rename("two_processes")
    shutil.copytree(two_processes / "checkpoint-2", uninterrupted.parent / "checkpoint-2")
    assert TrainingRun(configuration.load(path), "auto").train() == uninterrupted
    compare(uninterrupted, last, tolerance)


def compare(checkpoint: Path, expected: Path, tolerance: float) -> None:
    """Losses and gradient norms of every step, validation losses, and weights."""
    for key in ("loss", "grad_norm", "eval_loss"):
        assert losses(checkpoint, key) == pytest.approx(losses(expected, key), abs=1e-5), key
    trained = weights(expected)
    assert max(float((value - trained[key]).abs().max()) for key, value in weights(checkpoint).items()) < tolerance
