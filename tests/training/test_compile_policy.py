"""Compilation and the logits memory limit change speed and memory, not what is learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errors import UsageError
from tests.training.test_run import losses, run
from training import compile_policy
from training.checkpointing import stage_model
from training.compile_policy import MIN_MICRO_BATCHES_TO_COMPILE, CompileDecision, check_step_settings, decide_compile
from training.config import TrainConfig

Workspace = Callable[..., Path]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.slow
def test_a_resumed_run_with_less_logits_memory_has_the_same_losses(workspace: Workspace) -> None:
    path = workspace(stages=[{"name": "tune", "train": ["connector", "lora"], "epochs": 2}], save_steps=2)
    run(path).rename("whole")
    chunked = run(path, "train.logits_memory_gib=1e-6", resume="auto")
    assert len(losses(chunked)) == 4
    assert losses(chunked) == pytest.approx(losses(Path("whole")), abs=1e-5)
    assert losses(chunked, "grad_norm") == pytest.approx(losses(Path("whole"), "grad_norm"), rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "device", "batches", "sharded", "enabled", "reason"),
    [
        ("auto", CUDA, MIN_MICRO_BATCHES_TO_COMPILE, False, True, f"auto: {MIN_MICRO_BATCHES_TO_COMPILE} micro-batches in this stage"),
        ("auto", CUDA, MIN_MICRO_BATCHES_TO_COMPILE - 1, False, False, "pays off after about"),
        ("auto", CUDA, 10**6, True, False, "sharded"),
        ("auto", CPU, 10**6, False, False, "auto on cpu"),
        (True, CPU, 1, False, True, "train.torch_compile=true"),
        (False, CUDA, 10**6, False, False, "train.torch_compile=false"),
    ],
)
def test_auto_compiles_where_it_pays_off(
    monkeypatch: pytest.MonkeyPatch, setting: bool, device: torch.device, batches: int, sharded: bool, enabled: bool, reason: str
) -> None:
    monkeypatch.setattr(compile_policy, "compile_unsupported_reason", lambda _: None)
    decision = decide_compile(TrainConfig(torch_compile=setting), device, batches, sharded)
    assert decision.enabled is enabled
    assert reason in str(decision)


def test_the_compile_decision_counts_micro_batches_not_optimizer_steps(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    original = decide_compile

    def recording_decide(train: TrainConfig, device: torch.device, micro_batches: int, sharded: bool) -> CompileDecision:
        counted.append(micro_batches)
        return original(train, device, micro_batches, sharded)

    monkeypatch.setattr(stage_model, "decide_compile", recording_decide)
    run(
        workspace(
            stages=[{"name": "align", "train": ["connector"], "max_steps": 1}], per_device_train_batch_size=2, gradient_accumulation_steps=3
        )
    )
    assert counted == [3]


def test_without_a_compiler_auto_is_off_and_true_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_policy, "compile_unsupported_reason", lambda _: "there is no compiler")
    assert str(decide_compile(TrainConfig(), CUDA, 10**6, False)) == "off (auto: there is no compiler)"
    check_step_settings(TrainConfig(), CUDA, sharded=False)
    with pytest.raises(UsageError, match=r"train\.torch_compile: there is no compiler; set train\.torch_compile=false"):
        check_step_settings(TrainConfig(torch_compile=True), CUDA, sharded=False)
    with pytest.raises(UsageError, match=r"train\.torch_compile: .*FSDP"):
        check_step_settings(TrainConfig(torch_compile=True), CUDA, sharded=True)


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses_and_prints_that_it_compiles(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(batching="packed", packing_length=256, num_logged_predictions=1)
    run(path).rename("plain")
    assert "compile: off (auto on cpu)" in capsys.readouterr().out
    compiled = run(path, "train.torch_compile=true")
    assert "compile: on (train.torch_compile=true)" in capsys.readouterr().out
    assert losses(compiled) == pytest.approx(losses(Path("plain")), abs=1e-5)
    assert losses(compiled, "eval_loss") == pytest.approx(losses(Path("plain"), "eval_loss"), abs=1e-5)
