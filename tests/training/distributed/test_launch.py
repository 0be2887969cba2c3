"""One process trains on one device, whatever else is visible; the world size is what was launched."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataset.loading.samplers import StepShape
from errors import UsageError
from training.config import StageConfig, TrainConfig
from training.distributed.launch import check_world_size, unused_gpus
from training.run_setup import Stage
from training.stage_trainer import training_arguments


def test_another_world_size_than_launched_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_world_size(None).num_processes == check_world_size(1).num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the launcher started 2 processes, but the world size is 1"):
        check_world_size(None)


def test_one_process_trains_on_one_of_several_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    stage = Stage(StageConfig(name="tune", train=("connector",)), 0, 0, 2)
    config = SimpleNamespace(train=TrainConfig(), checkpoint_folder=tmp_path)
    batching = SimpleNamespace(step=StepShape(1, 1))
    run: Any = SimpleNamespace(config=config, stream=None, batching=batching, precision="fp32", device=torch.device("cuda"))
    arguments = training_arguments(run, stage, validate=False)
    # With more than one the Trainer would use nn.DataParallel.
    assert arguments.n_gpu == 1


def test_gpus_that_are_not_used_are_named_with_the_command_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    alone = SimpleNamespace(num_processes=1, device=torch.device("cuda", 0))
    notice = unused_gpus(alone)
    assert notice is not None
    assert "cuda:0 of 4 visible ones" in notice
    assert "multi_gpu.yaml --num_processes 4 train.py" in notice
    assert unused_gpus(SimpleNamespace(num_processes=4, device=torch.device("cuda", 0))) is None
    assert unused_gpus(SimpleNamespace(num_processes=1, device=torch.device("cpu"))) is None
