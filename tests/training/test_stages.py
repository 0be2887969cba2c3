from typing import Any, ClassVar

import pytest
from torch import nn

from model.param_groups import GroupPaths
from training.checkpointing.stage_model import describe_trained
from training.config import LearningRates, StageConfig, TrainConfig
from training.optimization.optimizers import learning_rate, optimizer_param_groups


class ToyModel(nn.Module):
    group_paths: ClassVar[GroupPaths] = {
        "connector": ("model.multi_modal_projector",),
        "language": ("model.language_model",),
        "vision": ("model.vision_tower",),
    }

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


class LayeredModel(nn.Module):
    group_paths: ClassVar[GroupPaths] = {"language": ("language.",), "vision": ("vision.",)}

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
        self.vision = nn.ModuleDict({"embeddings": nn.Linear(2, 2, bias=False), "layers": layers, "norm": nn.LayerNorm(2, bias=False)})
        self.language = nn.ModuleDict(
            {"q_proj": nn.ModuleDict({name: nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)}) for name in ("lora_A", "lora_B")})}
        )


def rates(model: nn.Module, **settings: Any) -> dict[str, float]:
    """Learning rates by the names of the parameters."""
    stage = StageConfig(name="s", train=("vision", "lora"), learning_rate=LearningRates(vision=1.0, lora=1.0))
    groups = optimizer_param_groups(model, stage, TrainConfig(**settings))
    by_id = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


def test_layers_of_a_vision_encoder_learn_the_slower_the_lower_they_are() -> None:
    found = rates(LayeredModel(), vision_layer_decay=0.5)
    assert found["vision.norm.weight"] == 1.0
    assert [found[f"vision.layers.{i}.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert found["vision.embeddings.weight"] == 0.0625


def test_lora_plus_multiplies_the_rate_of_b() -> None:
    found = rates(LayeredModel(), loraplus_lr_ratio=16.0)
    assert found["language.q_proj.lora_A.default.weight"] == 1.0
    assert found["language.q_proj.lora_B.default.weight"] == 16.0
    assert found["vision.embeddings.weight"] == 1.0
