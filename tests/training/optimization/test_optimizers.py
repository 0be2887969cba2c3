"""The optimizers. Paged memory needs CUDA; on a CPU bitsandbytes stores the same 8-bit moments in ordinary memory."""

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

Workspace = Callable[..., Path]
PAGED = TrainConfig(optim="paged_adamw8bit")


def test_an_unsupported_optimizer_is_named_in_the_error() -> None:
    with pytest.raises(UsageError, match=r"train\.optim: paged_adamw8bit needs a CUDA device, found cpu"):
        check_optimizer(PAGED, torch.device("cpu"), sharded=False)
    with pytest.raises(UsageError, match=r"train\.optim: .*FSDP"):
        check_optimizer(PAGED, torch.device("cuda"), sharded=True)
    check_optimizer(PAGED, torch.device("cuda"), sharded=False)
    check_optimizer(TrainConfig(), torch.device("cpu"), sharded=True)


def test_a_run_with_the_paged_optimizer_on_a_cpu_ends_before_a_model_is_loaded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.siglip_qwen.assembly.build", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(UsageError, match=r"train\.optim"):
        run(workspace(optim="paged_adamw8bit"))


def train_parameter(parameter: torch.nn.Parameter, optim: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    for step in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optim.step()
    return parameter.detach().clone()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_paged_optimizer_needs_a_quarter_of_the_memory_and_ends_near_adamw() -> None:
    trained = {}
    for train in (TrainConfig(), PAGED):
        parameter = torch.nn.Parameter(torch.ones(64, 256))
        optim = build_optimizer(train, [{"params": [parameter], "lr": 1e-2, "weight_decay": 0.1}], torch.device("cpu"))
        trained[train.optim] = train_parameter(parameter, optim, 5)
        tensors = [state for state in optim.state[parameter].values() if isinstance(state, torch.Tensor)]
        moments = [state for state in tensors if state.numel() == parameter.numel()]
        assert sum(state.nbytes for state in moments) == optimizer_bytes_per_parameter(train) * parameter.numel()
    fp32, int8 = trained["adamw"], trained["paged_adamw8bit"]
    assert not torch.equal(fp32, int8)
    assert (int8 - fp32).norm() < 0.3 * (fp32 - 1).norm()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_resumed_run_is_the_same_bit_for_bit_and_its_moments_are_paged_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.compile_policy.check_optimizer", lambda *_: None)
    buffer_shapes: list[tuple[int, ...]] = []

    class RecordingOptimizer(PagedAdamW8bit):
        def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            buffer_shapes.append(tuple(p.shape))
            buffer: torch.Tensor = super().get_state_buffer(p, dtype)
            return buffer

    monkeypatch.setattr(optimizers, "PagedAdamW8bit", RecordingOptimizer)
    path = workspace(stages=[{"name": "tune", "train": ["connector", "lora"], "epochs": 2}], save_steps=2, optim="paged_adamw8bit")
    uninterrupted = run(path)
    buffers = len(buffer_shapes)
    assert buffers > 0 and torch.load(uninterrupted.parent / "checkpoint-2" / "trainer" / "optimizer.pt", weights_only=True)["state"]
    expected, rows = weights(uninterrupted), losses(uninterrupted)
    for file in uninterrupted.iterdir():
        if file.name == "adapter_model.safetensors":
            file.write_bytes(b"half")
    resumed = run(path, resume="auto")
    assert len(buffer_shapes) == 2 * buffers, "each moment has a new buffer after the resume"
    assert losses(resumed) == rows
    assert all(torch.equal(value, expected[key]) for key, value in load_file(resumed / "adapter_model.safetensors").items())
