"""How a step is carried out touches its time and memory, not what is learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errors import UsageError
from tests.training.test_run import losses, run
from training import compile_policy
from training import run as training_run
from training.compile_policy import REPAID_AFTER, Choice, check_step, choose_compiling
from training.config import TrainConfig

Workplace = Callable[..., Path]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_little_memory_for_scores_changes_no_loss_and_a_run_may_go_on_with_it(workplace: Workplace) -> None:
    path = workplace(stages=[{"name": "tune", "train": ["projector", "lora"], "epochs": 2}], save_steps=2)
    whole = run(path)
    whole.rename("whole")
    chunked = run(path, "train.logits_memory_gib=1e-6", resume="auto")
    assert len(losses(chunked)) == 4
    assert losses(chunked) == pytest.approx(losses(Path("whole")), abs=1e-5)
    assert losses(chunked, "grad_norm") == pytest.approx(losses(Path("whole"), "grad_norm"), rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "device", "batches", "shared_out", "on", "why"),
    [
        ("auto", CUDA, REPAID_AFTER, False, True, f"auto: {REPAID_AFTER} micro-batches in this stage"),
        ("auto", CUDA, REPAID_AFTER - 1, False, False, "repaid after about"),
        ("auto", CUDA, 10**6, True, False, "shared out"),
        ("auto", CPU, 10**6, False, False, "auto on cpu"),
        (True, CPU, 1, False, True, "train.compile=true"),
        (False, CUDA, 10**6, False, False, "train.compile=false"),
    ],
)
def test_layers_are_compiled_where_it_repays(
    monkeypatch: pytest.MonkeyPatch, setting: bool, device: torch.device, batches: int, shared_out: bool, on: bool, why: str
) -> None:
    monkeypatch.setattr(compile_policy, "what_compiling_lacks", lambda _: None)
    choice = choose_compiling(TrainConfig(compile=setting), device, batches, shared_out)
    assert choice.on is on
    assert why in str(choice)


def test_a_stage_is_as_long_as_its_micro_batches(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    usual = choose_compiling

    def watched(train: TrainConfig, device: torch.device, micro_batches: int, shared_out: bool) -> Choice:
        counted.append(micro_batches)
        return usual(train, device, micro_batches, shared_out)

    monkeypatch.setattr(training_run, "choose_compiling", watched)
    run(workplace(stages=[{"name": "align", "train": ["projector"], "max_steps": 1}], batch_size=2, accumulation=3))
    assert counted == [3]


def test_without_a_compiler_auto_goes_on_and_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_policy, "what_compiling_lacks", lambda _: "there is no compiler")
    assert str(choose_compiling(TrainConfig(), CUDA, 10**6, False)) == "off (auto: there is no compiler)"
    check_step(TrainConfig(), CUDA, shared_out=False)
    with pytest.raises(UsageError, match=r"train\.compile: there is no compiler; set train\.compile=false"):
        check_step(TrainConfig(compile=True), CUDA, shared_out=False)
    with pytest.raises(UsageError, match=r"train\.compile: .*FSDP"):
        check_step(TrainConfig(compile=True), CUDA, shared_out=True)


def test_a_compiled_run_learns_the_same_and_says_so(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workplace(batching="packed", tokens_per_row=256, panels=1)
    run(path).rename("plain")
    assert "compile: off (auto on cpu)" in capsys.readouterr().out
    compiled = run(path, "train.compile=true")
    assert "compile: on (train.compile=true)" in capsys.readouterr().out
    assert losses(compiled) == pytest.approx(losses(Path("plain")), abs=1e-5)
    assert losses(compiled, "eval_loss") == pytest.approx(losses(Path("plain"), "eval_loss"), abs=1e-5)
