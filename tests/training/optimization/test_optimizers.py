"""The optimizers. Paged memory needs CUDA; on a CPU bitsandbytes keeps the same 8-bit moments in ordinary memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from errors import UsageError
from tests.training.test_run import losses, run, weights
from training.config import TrainConfig
from training.optimization import optimizers
from training.optimization.optimizers import PagedAdamW8bit, build_optimizer, check_optimizer, optimizer_bytes_per_parameter

Workplace = Callable[..., Path]
PAGED = TrainConfig(optim="paged_adamw8bit")


def test_where_it_cannot_run_the_setting_is_named() -> None:
    with pytest.raises(UsageError, match=r"train\.optimizer: paged_adamw8bit needs a CUDA device, found cpu"):
        check_optimizer(PAGED, torch.device("cpu"), sharded=False)
    with pytest.raises(UsageError, match=r"train\.optimizer: .*FSDP"):
        check_optimizer(PAGED, torch.device("cuda"), sharded=True)
    check_optimizer(PAGED, torch.device("cuda"), sharded=False)
    check_optimizer(TrainConfig(), torch.device("cpu"), sharded=True)


def test_a_run_that_asks_for_it_on_a_cpu_ends_before_a_model_is_loaded(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run.build", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(UsageError, match=r"train\.optimizer"):
        run(workspace(optim="paged_adamw8bit"))


def trained(parameter: torch.nn.Parameter, optim: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    for step in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optim.step()
    return parameter.detach().clone()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_it_takes_a_quarter_of_the_memory_and_ends_near_adamw() -> None:
    found = {}
    for train in (TrainConfig(), PAGED):
        parameter = torch.nn.Parameter(torch.ones(64, 256))
        optim = build_optimizer(train, [{"params": [parameter], "lr": 1e-2, "weight_decay": 0.1}], torch.device("cpu"))
        found[train.optim] = trained(parameter, optim, 5)
        tensors = [state for state in optim.state[parameter].values() if isinstance(state, torch.Tensor)]
        moments = [state for state in tensors if state.numel() == parameter.numel()]
        assert sum(state.nbytes for state in moments) == optimizer_bytes_per_parameter(train) * parameter.numel()
    exact, near = found["adamw"], found["paged_adamw8bit"]
    assert not torch.equal(exact, near)
    assert (near - exact).norm() < 0.3 * (exact - 1).norm()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_run_is_continued_to_the_bit_and_loaded_moments_are_paged_again(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.compile_policy.check_optimizer", lambda *_: None)
    asked: list[tuple[int, ...]] = []

    class Watched(PagedAdamW8bit):
        def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            asked.append(tuple(p.shape))
            buffer: torch.Tensor = super().get_state_buffer(p, dtype)
            return buffer

    monkeypatch.setattr(optimizers, "PagedAdamW8bit", Watched)
    path = workspace(stages=[{"name": "tune", "train": ["connector", "lora"], "epochs": 2}], save_steps=2, optim="paged_adamw8bit")
    whole = run(path)
    made = len(asked)
    assert made > 0 and torch.load(whole.parent / "checkpoint-2" / "trainer" / "optimizer.pt", weights_only=True)["state"]
    wanted, rows = weights(whole), losses(whole)
    for file in whole.iterdir():
        if file.name == "adapter_model.safetensors":
            file.write_bytes(b"half")
    again = run(path, resume="auto")
    assert len(asked) == 2 * made, "each moment has a buffer made anew behind the resume"
    assert losses(again) == rows
    assert all(torch.equal(value, wanted[key]) for key, value in load_file(again / "adapter_model.safetensors").items())
