"""Checkpoints of transformers' own classes: what was trained; the base models are loaded again from where they came.

adapter_config.json, adapter_model.safetensors   LoRA, and modules trained with it, in PEFT's format
trained_weights.safetensors                      groups trained in full without PEFT, under the names of the class
config.json                                      {"model_type": "tessera_<family>", "settings": model settings, "trained_groups": [...],
                                                 "base_sha256": {key of a base model: SHA-256 of its folder}}
whole.json                                       manifest, written last
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from atomic_io import write_json
from errors import UsageError, loading
from model.checkpoint_manifest import model_digest
from model.family import read_model_config
from model.family_config import FamilyConfig, ParamGroup
from model.param_groups import has_adapters, param_group_of, set_trainable, unwrapped

C = TypeVar("C", bound=FamilyConfig)

TRAINED_WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "trained_weights.safetensors", "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """config.json of a checkpoint: model settings, groups that the run has trained so far, and the SHA-256 of the folder of each base
    model, by its key; none of a hub name."""

    settings: FamilyConfig
    trained_groups: tuple[ParamGroup, ...]
    base_sha256: dict[str, str]


def base_digests(settings: FamilyConfig) -> dict[str, str]:
    """SHA-256 of the files of each base model that is a folder, by its key."""
    folders = {key: Path(getattr(settings, key)) for key in settings.base_models}
    return {key: model_digest(folder) for key, folder in folders.items() if folder.is_dir()}


def save_tuned(model: Any, folder: Path, state: dict[str, torch.Tensor] | None, always: Collection[ParamGroup]) -> None:
    """Write the trained weights and the settings, as `model.family.Family.save`.

    Args:
        model: has `settings` and `trained_groups`.
        folder: checkpoint folder.
        state: full state dict of the model, where its parameters are sharded.
        always: groups that are new, not pre-trained: they are written even if the run trained others only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inner = unwrapped(model)
    if has_adapters(model):
        import peft

        adapters = peft.get_peft_model_state_dict(model, state_dict=state)
        save_tensors(adapters, folder / ADAPTER_WEIGHTS)
        model.peft_config["default"].save_pretrained(folder)
    save_in_full(model, {*inner.trained_groups, *always}, folder, state)
    raw = {
        "model_type": f"tessera_{inner.settings.family}",
        "settings": dataclasses.asdict(inner.settings),
        "trained_groups": list(inner.trained_groups),
        "base_sha256": inner.base_sha256,
    }
    write_json(folder / "config.json", raw)


def save_in_full(model: Any, groups: Collection[ParamGroup], folder: Path, state: dict[str, torch.Tensor] | None) -> None:
    """Write the weights of these groups that are not in PEFT's file, if there are any. state: as in `save_tuned`."""
    if in_full := trained_in_full(model, groups):
        values = model.state_dict() if state is None else state
        save_tensors({_own_name(name): values[name] for name in in_full}, folder / TRAINED_WEIGHTS)


def _own_name(name: str) -> str:
    """The name of a parameter in the model's own class, whose linear layers PEFT wraps."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file."""
    # Tied weights share memory, which the format does not store.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def trained_in_full(model: Any, groups: Collection[ParamGroup]) -> list[str]:
    """Names of the parameters of these groups that are not in PEFT's file."""
    paths = unwrapped(model).group_paths
    names = (name for name, _ in model.named_parameters() if ".modules_to_save." not in name)
    return [name for name in names if ".lora_" not in name and param_group_of(name, paths) in groups]


def load_trained(model: Any, folder: Path, groups: Collection[ParamGroup], always: Collection[ParamGroup]) -> Any:
    """The base model with the trained weights of a checkpoint, those of `groups` trainable. Raises UsageError if they do not fit.

    Args:
        model: the base model, frozen.
        folder: checkpoint folder.
        groups: those that the run trained.
        always: as in `save_tuned`.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        import peft

        with loading("checkpoint", str(folder)):
            adapter_config = peft.PeftConfig.from_pretrained(str(folder))
            model = peft.get_peft_model(model, adapter_config)
            tensors = load_file(folder / ADAPTER_WEIGHTS)
        check_shapes(folder / ADAPTER_WEIGHTS, tensors, shapes(peft.get_peft_model_state_dict(model)))
        peft.set_peft_model_state_dict(model, tensors)
    set_trainable(model, groups)
    names = set(trained_in_full(model, {*groups, *always}))
    if not names:
        return model
    with loading("checkpoint", str(folder)):
        tensors = load_file(folder / TRAINED_WEIGHTS)
    own = {_own_name(name): parameter for name, parameter in model.named_parameters() if name in names}
    check_shapes(folder / TRAINED_WEIGHTS, tensors, shapes(own))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
    return model


def freeze_for_answering(model: Any, dtype: torch.dtype) -> Any:
    """The model in eval mode, its trained weights in the dtype of the others."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_shapes(path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise UsageError unless a file holds the expected weights in their shapes."""
    if wrong := sorted({name for name, _ in shapes(found).items() ^ expected.items()}):
        raise UsageError(f"{path}: {len(wrong)} weights are missing, unexpected or of another shape, such as {wrong[0]}")


def parse_settings(folder: Path, settings: Any, config_class: type[C]) -> C:
    """The model settings in config.json of a checkpoint. Raises UsageError naming an invalid one."""
    try:
        return TypeAdapter(config_class).validate_json(json.dumps(settings))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UsageError(f"{folder / 'config.json'}: settings.{key}: {problem['msg'].lower()}") from error


def read_checkpoint_config(folder: Path, config_class: type[FamilyConfig], whole_model_types: Collection[str]) -> CheckpointConfig:
    """config.json of a checkpoint. Raises UsageError when the folder is not a checkpoint of this family, or a setting is invalid."""
    raw = read_model_config(folder)
    if raw.get("model_type") in whole_model_types:
        raise UsageError(f"{folder}: a whole model, which does not say what it was tuned from; take untuned out of eval.controls")
    groups = raw.get("trained_groups", [])
    if unknown := [group for group in groups if group not in get_args(ParamGroup)]:
        raise UsageError(
            f"{folder / 'config.json'}: trained_groups: {unknown[0]} is no parameter group ({', '.join(get_args(ParamGroup))})"
        )
    return CheckpointConfig(parse_settings(folder, raw.get("settings"), config_class), tuple(groups), raw.get("base_sha256") or {})


def check_base(folder: Path, config: CheckpointConfig) -> None:
    """Raise UsageError when a base model's folder holds other weights than when the run started."""
    for key, digest in base_digests(config.settings).items():
        if config.base_sha256.get(key, digest) != digest:
            raise UsageError(
                f"{folder}: it was trained on the model in {getattr(config.settings, key)}, which holds other weights now: the SHA-256 of "
                f"its files is not that of base_sha256.{key} in config.json"
            )
