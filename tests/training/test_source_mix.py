"""A run with weighted sources: its epochs, its log, and what a resumed run keeps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import config as configuration
from errors import UsageError
from training.run import TrainingRun
from training.run_setup import setup_run, training_sampler

SOURCES = [{"format": "llava", "annotations": "none.json", "name": name} for name in ("drawn", "rare")]


def weighted(*weights: float) -> str:
    return "data.sources=" + json.dumps([{**source, "weight": weight} for source, weight in zip(SOURCES, weights, strict=True)])


@pytest.fixture
def two_sources(workspace: Callable[..., Path]) -> Path:
    """The YAML of a run of two epochs of eight samples, of which the last two are of the source `rare`."""
    path = workspace(stages=[{"name": "tune", "train": ["connector", "lora"], "epochs": 2}], save_steps=1, save_total_limit=9)
    table = pq.read_table("data/toy/samples.parquet")
    names = pa.array(["rare" if row in (6, 7) else "drawn" for row in range(len(table))])
    pq.write_table(table.set_column(table.schema.get_field_index("source"), "source", names), "data/toy/samples.parquet")
    return path


def test_an_epoch_has_the_shares_and_the_log_says_them(two_sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_setup = setup_run(configuration.load(two_sources, [weighted(1, 3)]))
    assert "mix: 8 samples an epoch: drawn 25.0 %, rare 75.0 %" in capsys.readouterr().out
    keys = [key for batch in training_sampler(run_setup, 0) for key in batch]
    for epoch in (0, 1):
        indices = [key.index for key in keys if key.epoch == epoch]
        assert sorted(index >= 6 for index in indices) == [False] * 2 + [True] * 6
    # Over both epochs the frequent source is walked through before it repeats.
    assert len({key.index for key in keys if key.index < 6}) == 4


def test_a_resumed_run_goes_on_in_the_same_plan_and_keeps_the_weights(two_sources: Path) -> None:
    config = configuration.load(two_sources, [weighted(1, 3)])
    last = TrainingRun(config).train()
    expected = load_file(last / "adapter_model.safetensors")
    shutil.rmtree(last)
    with pytest.raises(UsageError, match=r"data\.mix"):
        TrainingRun(configuration.load(two_sources, [weighted(1, 1)]), "auto").train()
    assert TrainingRun(config, "auto").train() == last
    found = load_file(last / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_source_of_the_data_that_the_configuration_does_not_name_is_an_error(two_sources: Path) -> None:
    one = json.dumps([{**SOURCES[0], "weight": 1.0}])
    with pytest.raises(UsageError, match=r"data/toy: has samples of the source 'rare', which data\.sources does not name"):
        setup_run(configuration.load(two_sources, [f"data.sources={one}"]))
