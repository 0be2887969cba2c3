"""Ours and stock train on the same samples and weights; batches that do not fit are reported."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.timing import TimedPath, Workload
from benchmarks.training import trained_models
from benchmarks.training.train_step import SampleCounts, measure
from benchmarks.training.trained_models import TrainedModel
from errors import TesseraError, UsageError
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from model.step_flops import StepFlops
from training.config import StageConfig, TrainConfig

CPU = torch.device("cpu")
SMALL = SiglipQwenConfig(max_length=512, lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1))


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(stages=(StageConfig(name="tune", train=("connector", "lora")),), **{"per_device_train_batch_size": 3, **changes})


def test_all_paths_are_measured_on_the_same_samples() -> None:
    report = measure("tiny", SMALL, settings(), Workload(samples=6, rounds=2), CPU)
    results = report.measured["results"]
    assert [(row["path"], row["batch"]) for row in results] == [
        ("ours", "3, by length"),
        ("stock", "3"),
        ("stock, checkpointing", "3"),
        ("stock, our batches", "3, by length"),
    ]
    ours, *others = results
    assert ours["ours_is_faster_by"] is None
    work, product = report.measured["work"], sorted(report.measured["product_tflops"])
    assert work["samples"] == 6 and len(product) == 2
    for row in results:
        seconds = sum(row["seconds"]) / 2
        assert row["samples_per_second"] == pytest.approx(6 / seconds)
        assert row["tokens_per_second"] == pytest.approx(work["tokens"] / seconds)
        assert row["share_of_product"] == pytest.approx(row["useful_tflops"] / (sum(product) / 2))
        assert row["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    for row in others:
        speedups = [theirs / own for own, theirs in zip(ours["seconds"], row["seconds"], strict=True)]
        assert row["ours_is_faster_by"]["median"] == pytest.approx(sum(speedups) / 2)
    assert len(report.rows) == 4 and report.facts["a block"].startswith("6 samples of ")
    assert report.facts["ours"] == "compile: off (auto on cpu); gradient checkpointing: none (0 of 5 layers; auto on cpu)"


def test_our_activation_checkpointing_follows_the_settings() -> None:
    report = measure("tiny", SMALL, settings(gradient_checkpointing=True), Workload(samples=3, rounds=1, against_stock=False), CPU)
    assert "gradient checkpointing: all (5 of 5 layers; train.gradient_checkpointing=true)" in report.facts["ours"]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TimedPath.block

    def block(path: TimedPath) -> float:
        if path.name == "stock" or (path.name == "stock, checkpointing" and path.batch == "4"):
            raise torch.OutOfMemoryError
        return original(path)

    monkeypatch.setattr(TimedPath, "block", block)
    train = settings(batching="packed", packing_length=160)
    report = measure("tiny", SMALL, train, Workload(samples=5, rounds=1, stock_batch=4), CPU)
    assert [tuple(row[:3]) for row in report.rows if row[2] == "out of memory"] == [
        ("stock", "4", "out of memory"),
        ("stock", "2", "out of memory"),
        ("stock", "1", "out of memory"),
        ("stock, checkpointing", "4", "out of memory"),
    ]
    assert [tuple(row[:2]) for row in report.rows if row[2] != "out of memory"] == [
        ("ours", "rows of 160, 63% full"),
        ("stock, checkpointing", "2"),
    ]


def test_ours_can_run_without_stock() -> None:
    report = measure("tiny", SMALL, settings(), Workload(samples=3, rounds=1, against_stock=False), CPU)
    assert [row["path"] for row in report.measured["results"]] == ["ours"]


def test_different_models_are_an_error(monkeypatch: pytest.MonkeyPatch, different_stock: Callable[..., Any]) -> None:
    monkeypatch.setattr(trained_models, "build_stock", different_stock)
    with pytest.raises(TesseraError, match="the models differ: on the same samples our loss is"):
        measure("tiny", SMALL, settings(), Workload(samples=3, rounds=1), CPU)


@pytest.mark.parametrize(
    ("model", "train", "key"),
    [
        (SMALL, TrainConfig(stages=(StageConfig(name="align", train=("connector",)),)), "train.stages"),
        (SiglipQwenConfig(lora=None), settings(), "train.stages"),
        (SMALL, settings(batching="packed", packing_length=40), "train.packing_length"),
        (SMALL, settings(cache_vision_features=True), "train.cache_vision_features"),
        (SMALL, settings(optim="paged_adamw8bit"), "train.optim"),
    ],
)
def test_settings_that_cannot_be_measured_are_rejected(model: SiglipQwenConfig, train: TrainConfig, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        measure("tiny", model, train, Workload(samples=3, rounds=1), CPU)


def test_trainable_bytes_are_trained_weights_and_their_moments(processor: Processor) -> None:
    model = torch.nn.Linear(10, 20)
    model.bias.requires_grad_(False)
    optim = torch.optim.AdamW([model.weight])
    side = TrainedModel(
        model, optim, lambda batch: model(batch["x"]).sum(), processor.pixel_reader, CPU, precision="fp32", max_grad_norm=1.0
    )
    assert side.trainable_bytes() == 4 * 200
    pixels = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    side.step({"x": torch.ones(1, 10), "pixel_values": pixels})
    assert side.trainable_bytes() == 4 * 200 * 3 + 4


def test_useful_operations_exclude_padding() -> None:
    assert (
        SampleCounts(samples=2, tokens=30, supervised=4).operations(StepFlops(per_token=5.0, per_supervised_token=7.0, per_image=11.0))
        == 150 + 28 + 22
    )
