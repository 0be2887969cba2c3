"""How a step is carried out touches its time and memory, not what is learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errors import UsageError
from tests.training.test_run import losses, run
from training import compile_policy
from training import run as training_run
from training.compile_policy import COMPILE_PAYS_AFTER, CompileDecision, check_step_settings, decide_compile
from training.config import TrainConfig

Workplace = Callable[..., Path]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_little_memory_for_scores_changes_no_loss_and_a_run_may_go_on_with_it(workspace: Workplace) -> None:
    path = workspace(stages=[{"name": "tune", "train": ["connector", "lora"], "epochs": 2}], save_steps=2)
    whole = run(path)
    whole.rename("whole")
    chunked = run(path, "train.logits_memory_gib=1e-6", resume="auto")
    assert len(losses(chunked)) == 4
    assert losses(chunked) == pytest.approx(losses(Path("whole")), abs=1e-5)
    assert losses(chunked, "grad_norm") == pytest.approx(losses(Path("whole"), "grad_norm"), rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "device", "batches", "shared_out", "on", "why"),
    [
        ("auto", CUDA, COMPILE_PAYS_AFTER, False, True, f"auto: {COMPILE_PAYS_AFTER} micro-batches in this stage"),
        ("auto", CUDA, COMPILE_PAYS_AFTER - 1, False, False, "repaid after about"),
        ("auto", CUDA, 10**6, True, False, "shared out"),
        ("auto", CPU, 10**6, False, False, "auto on cpu"),
        (True, CPU, 1, False, True, "train.torch_compile=true"),
        (False, CUDA, 10**6, False, False, "train.torch_compile=false"),
    ],
)
def test_layers_are_compiled_where_it_repays(
    monkeypatch: pytest.MonkeyPatch, setting: bool, device: torch.device, batches: int, sharded: bool, enabled: bool, reason: str
) -> None:
    monkeypatch.setattr(compile_policy, "compile_unsupported_reason", lambda _: None)
    choice = decide_compile(TrainConfig(torch_compile=setting), device, batches, sharded)
    assert choice.enabled is enabled
    assert reason in str(choice)


def test_a_stage_is_as_long_as_its_micro_batches(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    usual = decide_compile

    def watched(train: TrainConfig, device: torch.device, micro_batches: int, sharded: bool) -> CompileDecision:
        counted.append(micro_batches)
        return usual(train, device, micro_batches, sharded)

    monkeypatch.setattr(training_run, "decide_compile", watched)
    run(
        workspace(
            stages=[{"name": "align", "train": ["connector"], "max_steps": 1}], per_device_train_batch_size=2, gradient_accumulation_steps=3
        )
    )
    assert counted == [3]


def test_without_a_compiler_auto_goes_on_and_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_policy, "compile_unsupported_reason", lambda _: "there is no compiler")
    assert str(decide_compile(TrainConfig(), CUDA, 10**6, False)) == "off (auto: there is no compiler)"
    check_step_settings(TrainConfig(), CUDA, sharded=False)
    with pytest.raises(UsageError, match=r"train\.compile: there is no compiler; set train\.compile=false"):
        check_step_settings(TrainConfig(torch_compile=True), CUDA, sharded=False)
    with pytest.raises(UsageError, match=r"train\.compile: .*FSDP"):
        check_step_settings(TrainConfig(torch_compile=True), CUDA, sharded=True)


def test_a_compiled_run_learns_the_same_and_says_so(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(batching="packed", packing_length=256, num_logged_predictions=1)
    run(path).rename("plain")
    assert "compile: off (auto on cpu)" in capsys.readouterr().out
    compiled = run(path, "train.torch_compile=true")
    assert "compile: on (train.torch_compile=true)" in capsys.readouterr().out
    assert losses(compiled) == pytest.approx(losses(Path("plain")), abs=1e-5)
    assert losses(compiled, "eval_loss") == pytest.approx(losses(Path("plain"), "eval_loss"), abs=1e-5)
