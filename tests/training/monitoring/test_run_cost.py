"""The cost that is printed before a run: FLOPs from the shapes alone, and the time on a card whose peak is known."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import config as configuration
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.family import FAMILY
from tests.training.test_run import run
from training.monitoring import run_cost
from training.monitoring.run_cost import format_flops, format_hours, print_run_cost, run_flops
from training.run_setup import RunSetup, setup_run, training_loader

Workspace = Callable[..., Path]
ALIGN = {"name": "align", "train": ["connector"], "epochs": 0.5}
TUNE = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}


def counted_flops(setup: RunSetup, stage: int) -> float:
    """FLOPs of one epoch, from the batches themselves and the loaded model."""
    settings = siglip_qwen_settings(setup.config.model, "this test")
    model = build(settings, image_token_id=setup.processor.image_token_id)
    cost = FAMILY.step_flops(configure_trainable(model, settings, setup.config.train.stages[stage].train))
    batches = list(training_loader(setup, 1))[:2]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    supervised = sum(len(batch["layout"].supervised_positions) for batch in batches)
    return cost.flops(tokens, supervised, sum(len(batch["pixel_values"]) for batch in batches))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_cost_is_that_of_the_batches_and_stages_and_needs_no_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    setup = setup_run(configuration.load(workspace({"quantization": quantization}, stages=[ALIGN, TUNE])))
    expected = 0.5 * counted_flops(setup, 0) + 2 * counted_flops(setup, 1)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    assert run_flops(setup, {0: 1, 1: 4}) == pytest.approx(expected, rel=1e-3)


def test_a_card_with_a_known_peak_gets_a_time_with_its_assumption(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = setup_run(configuration.load(workspace()))
    monkeypatch.setattr(run_cost, "run_flops", lambda *_: 1.0e18)
    monkeypatch.setattr(type(setup), "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    object.__setattr__(setup, "precision", "fp16")
    print_run_cost(setup, {0: 1000})
    text = "cost: 1 EFLOP of useful operations in 1,000 steps; about 14 h on Tesla T4, if 30% of its peak of 65 TFLOP/s are reached"
    assert text in capsys.readouterr().out


def test_a_run_prints_its_cost_before_weights_and_a_resumed_run_that_of_the_rest(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace(save_steps=1)
    run(path)
    printed = capsys.readouterr().out
    assert printed.index("cost: ") < printed.index("stage tune")
    assert "in 2 steps; how long that takes on cpu in fp32 is not known before the first steps" in printed
    Path("checkpoints/toy/checkpoint-2").rename("later")
    run(path, resume="auto")
    assert "of useful operations in 1 steps" in capsys.readouterr().out


def test_sizes_and_durations_are_rounded_to_what_an_estimate_is_worth() -> None:
    assert [format_flops(value) for value in (2.7e18, 3.2e15, 1.5e9, 2.3e20)] == ["2.7 EFLOP", "3.2 PFLOP", "1.5 GFLOP", "230 EFLOP"]
    assert [format_hours(value) for value in (5, 600, 3 * 3600, 80 * 3600)] == ["1 min", "10 min", "3 h", "3.3 days"]
