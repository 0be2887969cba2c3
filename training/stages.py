"""Which parameters a stage trains, and how fast."""

from torch import nn

from errors import UsageError
from model.param_groups import trainable_param_groups
from model.siglip_qwen.config import ModelConfig
from training.config import TrainConfig


def check_stages(train: TrainConfig, model: ModelConfig) -> None:
    """Raise UsageError naming the first stage that cannot be trained with this model; nothing is loaded for it."""
    if not train.stages:
        raise UsageError("train.stages: empty; name at least one stage")
    trained = {group for stage in train.stages for group in stage.train}
    if {"lora", "language"} <= trained:
        raise UsageError("train.stages: one stage trains lora, one the whole language model; a run does one or the other")
    for i, stage in enumerate(train.stages):
        key = f"train.stages.{i}"
        if stage.name in [other.name for other in train.stages[:i]]:
            raise UsageError(f"{key}.name: an earlier stage is called {stage.name}, too")
        if not stage.train:
            raise UsageError(f"{key}.train: empty; name at least one of projector, lora, language")
        if "lora" in stage.train and model.lora is None:
            raise UsageError(f"{key}.train: lora is to be trained, but model.lora is null")
        if "language" in stage.train and model.quantization != "none":
            raise UsageError(f"{key}.train: a quantised language model cannot be trained as a whole; set model.quantization=none")


def describe_trained(model: nn.Module) -> str:
    """Such as "projector 61.4 K, lora 1.2 M parameters"."""
    counts = {group: sum(p.numel() for p in parameters) for group, parameters in trainable_param_groups(model).items()}
    return ", ".join(f"{group} {_short(count)}" for group, count in counts.items()) + " parameters"


def _short(count: int) -> str:
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
