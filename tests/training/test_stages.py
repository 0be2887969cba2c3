import pytest
from torch import nn

from model.siglip_qwen.modeling import GROUP_PATHS
from training.checkpointing.stage_model import describe_trained
from training.config import LearningRates, StageConfig, TrainConfig
from training.optimization.optimizers import learning_rate, optimizer_param_groups


class ToyModel(nn.Module):
    group_paths = GROUP_PATHS

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"multi_modal_projector": nn.Linear(4, 4), "language_model": nn.Linear(4, 4), "vision_tower": nn.Linear(4, 4)}
        )


def test_each_group_has_its_own_learning_rate_and_vectors_have_no_weight_decay() -> None:
    model = ToyModel()
    model.model["vision_tower"].requires_grad_(False)
    stage = StageConfig(name="s", train=("connector", "language"), learning_rate=LearningRates(connector=1e-3, language=1e-5))
    groups = optimizer_param_groups(model, stage, TrainConfig(weight_decay=0.1))
    assert [(group["name"], group["lr"], group["weight_decay"], group["params"][0].ndim) for group in groups] == [
        ("connector", 1e-3, 0.1, 2), ("connector", 1e-3, 0.0, 1), ("language", 1e-5, 0.1, 2), ("language", 1e-5, 0.0, 1),
    ]  # fmt: skip
    assert describe_trained(model) == "connector 20, language 20 parameters"


@pytest.mark.parametrize(
    ("stage_rate", "default_rate", "expected"),
    [
        (None, LearningRates(lora=3e-4), 3e-4),
        (None, 5e-4, 5e-4),
        (7e-4, LearningRates(lora=3e-4), 7e-4),
        (LearningRates(lora=9e-4), 5e-4, 9e-4),
    ],
)
def test_a_stage_s_learning_rate_overrides_the_default(
    stage_rate: float | LearningRates | None, default_rate: float | LearningRates, expected: float
) -> None:
    stage = StageConfig(name="s", train=("lora",), learning_rate=stage_rate)
    assert learning_rate(stage, TrainConfig(learning_rate=default_rate), "lora") == expected
