"""The fast path and the plain one learn the same; two that do not are told apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import config as configuration
from benchmarks.training import loss_parity, train_step
from benchmarks.training.loss_parity import check, measure
from benchmarks.training.timed_steps import TrainedModel
from benchmarks.training.train_step import copy_adapters
from errors import TesseraError, UsageError
from tests.training.conftest import workspace as workspace
from tools import benchmark
from training.optimization.optimizers import build_optimizer

Workplace = Callable[..., Path]
PACKED = ("train.batching=packed", "train.packing_length=300")


@pytest.mark.parametrize("overrides", [(), PACKED], ids=["padded", "packed"])
def test_both_paths_end_within_a_percent_of_each_other(workspace: Workplace, overrides: tuple[str, ...]) -> None:
    report = measure(configuration.load(workspace(), list(overrides)), steps=8, eval_steps=5)
    rows = report.measured["rows"]
    assert [row["step"] for row in rows] == [0, 5, 8]
    assert rows[-1]["validation_ours"] < rows[0]["validation_ours"], "nothing was learnt"
    assert max(row["differs_by"] for row in rows) < 1e-4
    assert rows[-1]["ours"] == pytest.approx(rows[-1]["stock"], rel=1e-4)
    check(report)


def test_neither_path_trains_a_weight_of_the_other(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[set[int]] = []

    def noticed(*sides: TrainedModel) -> None:
        copy_adapters(*sides)
        trained.extend({id(weight) for weight in side.model.parameters() if weight.requires_grad} for side in sides)

    monkeypatch.setattr(loss_parity, "copy_adapters", noticed)
    measure(configuration.load(workspace()), steps=1, eval_steps=1)
    ours, stock = trained
    assert len(ours) == len(stock) > 0
    assert not ours & stock


def test_a_step_that_learns_something_else_is_found(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = build_optimizer

    def other(*given: Any) -> Any:
        optimizer = usual(*given)
        monkeypatch.setattr(train_step, "build_optimizer", usual)
        for group in optimizer.param_groups:
            group["betas"] = (0.0, 0.9)
        return optimizer

    monkeypatch.setattr(train_step, "build_optimizer", other)
    report = measure(configuration.load(workspace()), steps=8, eval_steps=8)
    with pytest.raises(TesseraError, match=r"behind 8 steps the validation losses differ by .*at most 1%"):
        check(report)


@pytest.mark.parametrize(
    ("model", "train", "named"),
    [
        ({"quantization": "nf4"}, {}, "model.quantization"),
        ({"connector": {"pool": 3}}, {}, "model.connector.pool"),
        ({}, {"cache_features": True}, "train.cache_vision_features"),
    ],
)
def test_what_cannot_be_compared_is_refused(workspace: Workplace, model: dict[str, Any], train: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        measure(configuration.load(workspace(model, **train)), 1, 1)


def test_the_command_saves_its_table_and_fails_where_they_differ(
    workspace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status() -> object:
        with pytest.raises(SystemExit) as ended:
            cli.run(benchmark.main, benchmark.arguments(), ["equality", "--config", "toy.yaml", "--steps", "1", "--out", "tables"])
        return ended.value.code

    workspace()
    assert status() == 0
    assert Path("tables/equality_toy.md").read_text().startswith("# Fast and plain path") and Path("tables/equality_toy.json").exists()
    monkeypatch.setattr(loss_parity, "TOLERANCE", -1.0)
    assert status() == 1
    assert "validation losses differ by" in capsys.readouterr().err
