"""How a step is carried out touches its time and memory, not what is learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.test_run import losses, run

Workplace = Callable[..., Path]


def test_little_memory_for_scores_changes_no_loss_and_a_run_may_go_on_with_it(workplace: Workplace) -> None:
    path = workplace(stages=[{"name": "tune", "train": ["projector", "lora"], "max_steps": 4}], save_steps=2)
    whole = run(path)
    whole.rename("whole")
    chunked = run(path, "train.logits_memory_gib=1e-6", resume="auto")
    assert losses(chunked) == pytest.approx(losses(Path("whole")), abs=1e-5)
    assert losses(chunked, "grad_norm") == pytest.approx(losses(Path("whole"), "grad_norm"), rel=1e-4)
