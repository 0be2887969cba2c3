"""Choice of the layers that recompute their activations, by trial steps on a simulated device memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset.loading.samplers import SampleKey
from errors import TesseraError
from model.siglip_qwen.adapters import base_model
from tests.training.test_run import losses, run, weights
from training import gradient_checkpointing
from training import run as training_run
from training.gradient_checkpointing import fewest_checkpointed_layers, longest_batch

Workspace = Callable[..., Path]
GIB = 2**30


def device(layers: int, memory_budget: float, fixed: float = 10.0, per_layer: float = 2.0) -> tuple[Callable[[int], int | None], list[int]]:
    """A trial on a device with `memory_budget` GiB: `fixed` GiB plus `per_layer` GiB for every layer that stores its activations."""
    tried: list[int] = []

    def trial(checkpointed_layers: int) -> int | None:
        tried.append(checkpointed_layers)
        peak = fixed + per_layer * (layers - checkpointed_layers)
        return int(peak * GIB) if peak <= memory_budget * 1.05 else None

    return trial, tried


@pytest.mark.parametrize(
    ("memory_budget", "checkpointed_layers"),
    [(100, 0), (66, 0), (65, 1), (38, 14), (12, 27), (11, 28), (10, 28)],
    ids=lambda value: str(value),
)
def test_the_fewest_layers_that_fit_into_memory_recompute(memory_budget: int, checkpointed_layers: int) -> None:
    trial, tried = device(28, memory_budget)
    chosen = fewest_checkpointed_layers(28, trial, memory_budget * GIB)
    assert chosen is not None and chosen.checkpointed_layers == checkpointed_layers
    assert checkpointed_layers in tried, "the chosen number was tried"
    assert len(tried) <= 4


def test_the_plan_is_printed_with_its_reason() -> None:
    chosen = fewest_checkpointed_layers(28, device(28, 38)[0], 38 * GIB)
    assert str(chosen) == "some (14 of 28 layers; auto: 38.0 GiB of the 38.0 GiB that may be used, 66.0 GiB with none recomputed)"


def test_an_estimate_that_is_too_low_is_corrected_by_a_trial() -> None:
    def trial(checkpointed_layers: int) -> int | None:
        # From the eleventh on, a layer that stores its activations needs more memory.
        stored = 28 - checkpointed_layers
        peak = 10 + stored + max(0, stored - 10) * 3
        return peak * GIB if peak <= 40 else None

    chosen = fewest_checkpointed_layers(28, trial, 40 * GIB)
    assert chosen is not None and 10 <= chosen.checkpointed_layers <= 14


def test_there_is_no_plan_when_all_layers_recomputing_does_not_fit() -> None:
    assert fewest_checkpointed_layers(28, device(28, 5)[0], 5 * GIB) is None


@dataclass
class SimulatedMemory:
    """Device memory: each layer that stores its activations needs 1 GiB. A trial also consumes random numbers."""

    size_gib: float
    model: list[Any] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)

    def free(self) -> int:
        return int(self.size_gib * GIB / gradient_checkpointing.USABLE_MEMORY_FRACTION) + GIB // 2

    def peak(self, step: Callable[[], None]) -> int | None:
        before, language_model = torch.get_rng_state(), base_model(self.model[0]).model.language_model
        hook = language_model.register_forward_pre_hook(self._assert_gradients_allocated)
        step()
        hook.remove()
        assert not torch.equal(torch.get_rng_state(), before), "dropout consumes random numbers"
        np.random.rand(), torch.rand(3)
        layers = base_model(self.model[0]).model.language_model.layers
        self.trials.append(sum(layer.gradient_checkpointing for layer in layers))
        peak = len(layers) - self.trials[-1]
        return peak * GIB if peak <= self.size_gib else None

    def _assert_gradients_allocated(self, *_: Any) -> None:
        """Gradients need memory in all but the first micro-batch of an optimizer step."""
        assert all(parameter.grad is not None for parameter in self.model[0].parameters() if parameter.requires_grad)


@pytest.mark.slow
def test_a_run_with_trial_steps_is_the_same_bit_for_bit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace({"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2}})
    plain = run(path)
    assert "gradient checkpointing: none (0 of 5 layers; auto on cpu)" in capsys.readouterr().out
    plain.rename("plain")
    memory = SimulatedMemory(size_gib=3)
    original_plan = gradient_checkpointing._plan_checkpointing
    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: memory)

    def recording_plan(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        memory.model.append(model)
        return original_plan(model, *rest)

    monkeypatch.setattr(gradient_checkpointing, "_plan_checkpointing", recording_plan)
    with_trials = run(path)
    assert memory.trials == [5, 4, 2]
    assert "gradient checkpointing: some (2 of 5 layers; auto: 3.0 GiB" in capsys.readouterr().out
    assert losses(with_trials) == losses(Path("plain"))
    expected = weights(Path("plain"))
    assert all(torch.equal(value, expected[key]) for key, value in weights(with_trials).items())


def test_the_plan_is_applied_even_if_it_was_not_the_last_trial(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, applied = SimulatedMemory(size_gib=0), list[int]()
    original_plan, configure_activation_checkpointing = (
        gradient_checkpointing._plan_checkpointing,
        gradient_checkpointing.configure_activation_checkpointing,
    )

    def recording_plan(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        memory.model.append(model)
        return original_plan(model, *rest)

    def recording_configure(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        plan = configure_activation_checkpointing(model, *rest)
        applied.append(sum(layer.gradient_checkpointing for layer in base_model(model).model.language_model.layers))
        assert applied[-1] == plan.checkpointed_layers
        return plan

    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: memory)
    monkeypatch.setattr(gradient_checkpointing, "_plan_checkpointing", recording_plan)
    monkeypatch.setattr(training_run, "configure_activation_checkpointing", recording_configure)
    run(workspace({"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2}}, stages=[{"name": "tune", "train": ["lora"], "max_steps": 1}]))
    assert (memory.trials, applied) == ([5, 4], [5])


def test_a_device_that_is_too_small_is_an_error_that_names_the_settings_to_change(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullMemory(SimulatedMemory):
        def peak(self, step: Callable[[], None]) -> int | None:  # noqa: ARG002
            return None

    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: FullMemory(1))
    expected = r"out of memory on cpu in a trial step with all activations recomputed; lower train\.packing_length"
    with pytest.raises(TesseraError, match=expected):
        run(workspace())


def test_the_trial_batch_is_the_one_that_needs_the_most_memory() -> None:
    class Lengths:
        def sampled_lengths(self, seed: int, epoch: int) -> np.ndarray:
            return np.array([5, 9, 30, 6, 7, 8]) + seed + epoch

    class Data:
        lengths, seed = Lengths(), 1

        def __getitem__(self, key: SampleKey) -> SampleKey:
            return key

    # The last batch is of a later epoch.
    batches = [[SampleKey(i, 0) for i in indices] for indices in ([0, 1], [2], [3, 4, 5])] + [[SampleKey(2, 1), *[SampleKey(0, 1)] * 3]]
    loader: Any = DataLoader(Data(), batch_sampler=batches, collate_fn=lambda rows: {"rows": rows})  # type: ignore[arg-type]
    assert longest_batch(loader, packed=False)["rows"] == batches[1], "31 tokens with padding"
    assert longest_batch(loader, packed=True)["rows"] == batches[2], "three samples"
