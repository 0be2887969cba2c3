"""Ours and stock reach the same losses; a difference is detected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import config as configuration
from benchmarks.training import loss_parity, trained_models
from benchmarks.training.loss_parity import check, measure
from benchmarks.training.trained_models import TrainedModel, copy_adapters
from errors import TesseraError, UsageError
from tests.training.conftest import workspace as workspace
from tools import benchmark
from training.optimization.optimizers import build_optimizer

Workspace = Callable[..., Path]
PACKED = ("train.batching=packed", "train.packing_length=300")


@pytest.mark.parametrize("overrides", [(), PACKED], ids=["padded", "packed"])
def test_validation_losses_of_both_sides_agree(workspace: Workspace, overrides: tuple[str, ...]) -> None:
    report = measure(configuration.load(workspace(), list(overrides)), steps=8, eval_steps=5)
    rows = report.measured["rows"]
    assert [row["step"] for row in rows] == [0, 5, 8]
    assert rows[-1]["validation_ours"] < rows[0]["validation_ours"], "the validation loss must decrease"
    assert max(row["differs_by"] for row in rows) < 1e-4
    assert rows[-1]["ours"] == pytest.approx(rows[-1]["stock"], rel=1e-4)
    check(report)


def test_the_sides_do_not_share_trained_weights(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[set[int]] = []

    def recording_copy(*sides: TrainedModel) -> None:
        copy_adapters(*sides)
        trained.extend({id(weight) for weight in side.model.parameters() if weight.requires_grad} for side in sides)

    monkeypatch.setattr(loss_parity, "copy_adapters", recording_copy)
    measure(configuration.load(workspace()), steps=1, eval_steps=1)
    ours, stock = trained
    assert len(ours) == len(stock) > 0
    assert not ours & stock


def test_a_different_training_step_is_detected(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = build_optimizer

    def changed_betas(*arguments: Any) -> Any:
        optimizer = original(*arguments)
        monkeypatch.setattr(trained_models, "build_optimizer", original)
        for group in optimizer.param_groups:
            group["betas"] = (0.0, 0.9)
        return optimizer

    monkeypatch.setattr(trained_models, "build_optimizer", changed_betas)
    report = measure(configuration.load(workspace()), steps=8, eval_steps=8)
    with pytest.raises(TesseraError, match=r"after 8 steps the validation losses differ by .*expected at most 1%"):
        check(report)


@pytest.mark.parametrize(
    ("model", "train", "key"),
    [
        ({"quantization": "nf4"}, {}, "model.quantization"),
        ({"connector": {"kind": "mlp_pool", "pool": 3}}, {}, "model.connector.kind"),
        ({}, {"cache_vision_features": True}, "train.cache_vision_features"),
    ],
)
def test_settings_that_cannot_be_compared_are_rejected(
    workspace: Workspace, model: dict[str, Any], train: dict[str, Any], key: str
) -> None:
    with pytest.raises(UsageError, match=key):
        measure(configuration.load(workspace(model, **train)), 1, 1)


def test_the_command_saves_its_table_and_fails_on_a_difference(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status() -> object:
        with pytest.raises(SystemExit) as ended:
            cli.run(benchmark.main, benchmark.arguments(), ["equality", "--config", "toy.yaml", "--steps", "1", "--out", "tables"])
        return ended.value.code

    workspace()
    assert status() == 0
    assert Path("tables/equality_toy.md").read_text().startswith("# Loss parity") and Path("tables/equality_toy.json").exists()
    monkeypatch.setattr(loss_parity, "TOLERANCE", -1.0)
    assert status() == 1
    assert "validation losses differ by" in capsys.readouterr().err
