"""A stage of a run, checks of the configured stages, and a summary of the trained parameters. Loads neither torch nor a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import UsageError
from model.config import ModelConfig
from training.config import StageConfig, TrainConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Stage:
    """A stage and its position in the run."""

    config: StageConfig
    index: int
    """Index in train.stages."""
    first_step: int
    """Optimizer steps of all earlier stages."""
    steps: int
    """Optimizer steps of this stage."""
    steps_before: int | None = None
    """Optimizer steps of this stage when the checkpoint to resume from was written, where that was another number."""


def check_stages(train: TrainConfig, model: ModelConfig) -> None:
    """Raise UsageError naming the first stage that this model cannot be trained with. Loads nothing."""
    if not train.stages:
        raise UsageError("train.stages: empty; name at least one stage")
    trained = {group for stage in train.stages for group in stage.train}
    if {"lora", "language"} <= trained:
        raise UsageError("train.stages: one stage trains lora, another the whole language model; a run can do only one of these")
    for i, stage in enumerate(train.stages):
        key = f"train.stages.{i}"
        if stage.name in [other.name for other in train.stages[:i]]:
            raise UsageError(f"{key}.name: an earlier stage is also called {stage.name}")
        known = ", ".join(model.groups)
        if not stage.train:
            raise UsageError(f"{key}.train: empty; name at least one of {known}")
        for group in stage.train:
            if group not in model.groups:
                raise UsageError(f"{key}.train: a {model.family} model has no group {group}; it has {known}")
        if "lora" in stage.train and model.lora is None:
            raise UsageError(f"{key}.train: lora needs model.lora, which is null")
        if "language" in stage.train and model.quantization != "none":
            raise UsageError(f"{key}.train: the weights of a quantised language model cannot be trained; set model.quantization=none")


def describe_trained(model: "nn.Module") -> str:
    """Number of trained parameters of each group, such as "connector 61.4 K, lora 1.2 M parameters"."""
    from model.param_groups import trainable_param_groups

    counts = {group: sum(p.numel() for p in parameters) for group, parameters in trainable_param_groups(model).items()}
    return ", ".join(f"{group} {_short(count)}" for group, count in counts.items()) + " parameters"


def _short(count: int) -> str:
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
