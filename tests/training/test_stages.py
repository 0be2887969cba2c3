import pytest
from torch import nn

from training.config import LearningRates, StageConfig, TrainConfig
from training.optimization.optimizers import learning_rate, optimizer_param_groups
from training.stages import describe_trained


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"multi_modal_projector": nn.Linear(4, 4), "language_model": nn.Linear(4, 4), "vision_tower": nn.Linear(4, 4)}
        )


def test_each_group_has_its_own_rate_and_vectors_are_not_decayed() -> None:
    model = Joined()
    model.model["vision_tower"].requires_grad_(False)
    stage = StageConfig(name="s", train=("connector", "language"), learning_rate=LearningRates(connector=1e-3, language=1e-5))
    groups = optimizer_param_groups(model, stage, TrainConfig(weight_decay=0.1))
    assert [(group["name"], group["lr"], group["weight_decay"], group["params"][0].ndim) for group in groups] == [
        ("connector", 1e-3, 0.1, 2), ("connector", 1e-3, 0.0, 1), ("language", 1e-5, 0.1, 2), ("language", 1e-5, 0.0, 1),
    ]  # fmt: skip
    assert describe_trained(model) == "projector 20, language 20 parameters"


@pytest.mark.parametrize(
    ("of_stage", "of_training", "expected"),
    [
        (None, LearningRates(lora=3e-4), 3e-4),
        (None, 5e-4, 5e-4),
        (7e-4, LearningRates(lora=3e-4), 7e-4),
        (LearningRates(lora=9e-4), 5e-4, 9e-4),
    ],
)
def test_a_stage_s_rate_goes_before_the_training_s(
    of_stage: float | LearningRates | None, of_training: float | LearningRates, expected: float
) -> None:
    stage = StageConfig(name="s", train=("lora",), learning_rate=of_stage)
    assert learning_rate(stage, TrainConfig(learning_rate=of_training), "lora") == expected
