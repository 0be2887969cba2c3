"""Which layers recompute their activations, found out by trying; the device's memory is played by a stand-in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from errors import TesseraError
from model.lora import base_model
from tests.training.test_run import losses, run, weights
from training import gradient_checkpointing
from training import run as training_run
from training.gradient_checkpointing import fewest_checkpointed_layers, longest_batch

Workplace = Callable[..., Path]
GIB = 2**30


def device(layers: int, memory_budget: float, fixed: float = 10.0, each: float = 2.0) -> tuple[Callable[[int], int | None], list[int]]:
    """A trial on a device of `usable` GiB: `fixed` GiB and `each` for every layer that keeps its activations."""
    tried: list[int] = []

    def trial(checkpointed_layers: int) -> int | None:
        tried.append(checkpointed_layers)
        peak = fixed + each * (layers - checkpointed_layers)
        return int(peak * GIB) if peak <= memory_budget * 1.05 else None

    return trial, tried


@pytest.mark.parametrize(
    ("usable", "recomputed"), [(100, 0), (66, 0), (65, 1), (38, 14), (12, 27), (11, 28), (10, 28)], ids=lambda value: str(value)
)
def test_as_few_layers_as_must_recompute(memory_budget: int, checkpointed_layers: int) -> None:
    trial, tried = device(28, memory_budget)
    chosen = fewest_checkpointed_layers(28, trial, memory_budget * GIB)
    assert chosen is not None and chosen.checkpointed_layers == checkpointed_layers
    assert checkpointed_layers in tried, "what is chosen was tried"
    assert len(tried) <= 4


def test_what_was_chosen_is_said_with_its_reason() -> None:
    chosen = fewest_checkpointed_layers(28, device(28, 38)[0], 38 * GIB)
    assert str(chosen) == "some (14 of 28 layers; auto: 38.0 GiB of the 38.0 GiB that may be used, 66.0 GiB with none recomputed)"


def test_a_reckoning_that_was_too_hopeful_is_put_right_by_trying() -> None:
    def trial(checkpointed_layers: int) -> int | None:
        # The last layers cost more than the first ones.
        kept = 28 - checkpointed_layers
        peak = 10 + kept + max(0, kept - 10) * 3
        return peak * GIB if peak <= 40 else None

    chosen = fewest_checkpointed_layers(28, trial, 40 * GIB)
    assert chosen is not None and 10 <= chosen.checkpointed_layers <= 14


def test_nothing_helps_where_not_even_all_layers_recomputing_fits() -> None:
    assert fewest_checkpointed_layers(28, device(28, 5)[0], 5 * GIB) is None


@dataclass
class StandIn:
    """Memory of a device: each layer that keeps its activations costs 1 GiB. Random numbers are drawn and lost in a trial."""

    room: float
    model: list[Any] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)

    def free(self) -> int:
        return int(self.room * GIB / gradient_checkpointing.USABLE_MEMORY_FRACTION) + GIB // 2

    def peak(self, step: Callable[[], None]) -> int | None:
        before, language_model = torch.get_rng_state(), base_model(self.model[0]).model.language_model
        hook = language_model.register_forward_pre_hook(self._gradients_are_there)
        step()
        hook.remove()
        assert not torch.equal(torch.get_rng_state(), before), "dropout draws"
        np.random.rand(), torch.rand(3)
        layers = base_model(self.model[0]).model.language_model.layers
        self.trials.append(sum(layer.gradient_checkpointing for layer in layers))
        peak = len(layers) - self.trials[-1]
        return peak * GIB if peak <= self.room else None

    def _gradients_are_there(self, *_: Any) -> None:
        """As in all but the first micro-batch of a step; they take memory, too."""
        assert all(parameter.grad is not None for parameter in self.model[0].parameters() if parameter.requires_grad)


def test_a_run_with_trials_is_the_same_to_the_bit(
    workspace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace({"lora": {"r": 4, "alpha": 8, "dropout": 0.2}})
    plain = run(path)
    assert "gradient checkpointing: none (0 of 5 layers; auto on cpu)" in capsys.readouterr().out
    plain.rename("plain")
    memory = StandIn(room=3)
    choose = gradient_checkpointing._plan_checkpointing
    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: memory)

    def watched(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        memory.model.append(model)
        return choose(model, *rest)

    monkeypatch.setattr(gradient_checkpointing, "_plan_checkpointing", watched)
    tried = run(path)
    assert memory.trials == [5, 4, 2]
    assert "gradient checkpointing: some (2 of 5 layers; auto: 3.0 GiB" in capsys.readouterr().out
    assert losses(tried) == losses(Path("plain"))
    expected = weights(Path("plain"))
    assert all(torch.equal(value, expected[key]) for key, value in weights(tried).items())


def test_what_was_chosen_is_set_also_where_it_was_not_tried_last(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, chosen = StandIn(room=0), list[int]()
    choose, configure_activation_checkpointing = (
        gradient_checkpointing._plan_checkpointing,
        gradient_checkpointing.configure_activation_checkpointing,
    )

    def watched(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        memory.model.append(model)
        return choose(model, *rest)

    def noted(model: Any, *rest: Any) -> gradient_checkpointing.CheckpointingPlan:
        found = configure_activation_checkpointing(model, *rest)
        chosen.append(sum(layer.gradient_checkpointing for layer in base_model(model).model.language_model.layers))
        assert chosen[-1] == found.checkpointed_layers
        return found

    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: memory)
    monkeypatch.setattr(gradient_checkpointing, "_plan_checkpointing", watched)
    monkeypatch.setattr(training_run, "configure_activation_checkpointing", noted)
    run(workspace({"lora": {"r": 4, "alpha": 8, "dropout": 0.2}}, stages=[{"name": "tune", "train": ["lora"], "max_steps": 1}]))
    assert (memory.trials, chosen) == ([5, 4], [5])


def test_a_device_that_is_too_small_ends_in_a_line_that_names_settings(workspace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(StandIn):
        def peak(self, step: Callable[[], None]) -> int | None:  # noqa: ARG002
            return None

    monkeypatch.setattr(gradient_checkpointing, "memory_probe", lambda _: Full(1))
    with pytest.raises(TesseraError, match=r"out of memory on cpu in a trial with all activations recomputed; lower train\.tokens_per_row"):
        run(workspace())


def test_the_batch_that_is_tried_takes_the_most_memory() -> None:
    class Lengths:
        def drawn(self, seed: int, epoch: int) -> np.ndarray:
            return np.array([5, 9, 30, 6, 7, 8]) + seed + epoch

    class Data:
        lengths, seed = Lengths(), 1

        def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
            return key

    batches = [[(0, 0), (1, 0)], [(2, 0)], [(3, 0), (4, 0), (5, 0)]]
    loader: Any = DataLoader(Data(), batch_sampler=batches, collate_fn=lambda rows: {"rows": rows})  # type: ignore[arg-type]
    assert longest_batch(loader, packed=False)["rows"] == batches[1], "31 tokens padded"
    assert longest_batch(loader, packed=True)["rows"] == batches[2], "three samples"
