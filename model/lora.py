"""LoRA on the language model of any family, and the recomputation of its activations."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from errors import UsageError, loading
from model.family_config import LoraConfig
from model.param_groups import language_model, language_model_path, unwrapped

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def language_lora_config(
    model: nn.Module, lora: LoraConfig, modules_to_save: list[str] | None = None, other_names: Mapping[str, str] | None = None
) -> peft.LoraConfig:
    """PEFT's config: LoRA on linear layers of the language model of `model`.

    Args:
        model: has `group_paths`; vision encoders have layers of equal names, so the pattern has the path of the language model.
        lora: rank, scale, dropout, layers.
        modules_to_save: names of modules that are trained in full and saved with the adapters.
        other_names: what this language model calls layers that `lora` may name differently.

    Raises UsageError when `lora` names a layer that does not exist.
    """
    return lora_config(model, lora, [language_model_path(model)], "model.lora", modules_to_save, other_names)


def lora_config(
    model: nn.Module,
    lora: LoraConfig,
    paths: Sequence[str],
    key: str,
    modules_to_save: list[str] | None = None,
    other_names: Mapping[str, str] | None = None,
) -> peft.LoraConfig:
    """PEFT's config: LoRA on linear layers of some parts of `model`. Raises UsageError when `lora` names a layer that does not exist.

    Args:
        paths: of the parts.
        key: setting that `lora` comes from, for messages.
        model, lora, modules_to_save, other_names: as in `language_lora_config`.
    """
    inner = unwrapped(model)
    modules = [(f"{path}.{name}", module) for path in paths for name, module in inner.get_submodule(path).named_modules()]
    linear = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)} - {"lm_head"}
    chosen = linear
    if lora.target_modules != "all-linear":
        chosen = {(other_names or {}).get(name, name) if name not in linear else name for name in lora.target_modules}
        if unknown := sorted(chosen - linear):
            part = "language model" if key == "model.lora" else "vision encoder"
            raise UsageError(f"{key}.target_modules: the {part} has no layer {unknown[0]}; it has {', '.join(sorted(linear))}")
    inside = "|".join(map(re.escape, paths)) if len(paths) == 1 else f"(?:{'|'.join(map(re.escape, paths))})"
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights="pissa" if lora.init_lora_weights == "pissa" else True,
        target_modules=rf"{_layer_pattern(modules, lora, key)}{inside}\..*\.({'|'.join(sorted(chosen))})",
        modules_to_save=modules_to_save,
    )


def _layer_pattern(modules: Sequence[tuple[str, nn.Module]], lora: LoraConfig, key: str) -> str:
    """The part of the pattern that says which layers have adapters; empty for all."""
    if lora.layers_to_transform is None:
        return ""
    found = {int(match[1]) for name, _ in modules if (match := _LAYER.search(name))}
    if unknown := sorted(set(lora.layers_to_transform) - found):
        raise UsageError(f"{key}.layers_to_transform: there is no layer {unknown[0]}; the layers are 0 to {max(found, default=-1)}")
    return rf"(?=.*\.layers\.(?:{'|'.join(map(str, sorted(lora.layers_to_transform)))})\.)"


def with_other_layers(first: peft.LoraConfig, second: peft.LoraConfig) -> peft.LoraConfig:
    """One config for the layers of both, which may differ in rank and scale. Raises UsageError where they differ in what PEFT has once."""
    for name in ("lora_dropout", "use_dora", "use_rslora", "init_lora_weights"):
        if getattr(first, name) != getattr(second, name):
            raise UsageError(
                f"model.vision_lora.{name}: {getattr(second, name)}, but model.lora has {getattr(first, name)}; they must be equal"
            )
    first.rank_pattern = {f"^{second.target_modules}": second.r}
    first.alpha_pattern = {f"^{second.target_modules}": second.lora_alpha}
    first.target_modules = f"(?:{first.target_modules})|(?:{second.target_modules})"
    return first


def with_adapter(model: Any, folder: Path, where: str) -> Any:
    """The model with a LoRA adapter injected into its layers. Raises UsageError if the adapter was trained on another model.

    where: the configuration key for the message.
    """
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} does not exist")
    with loading(where, str(folder)):
        settings = peft.PeftConfig.from_pretrained(folder)
        if settings.peft_type != peft.PeftType.LORA:
            raise ValueError(f"it is a {settings.peft_type.value} adapter, LORA is expected")
        weights = peft.load_peft_weights(str(folder), device="cpu")
        try:
            adapted = peft.PeftModel.from_pretrained(model, folder)
        except RuntimeError as error:
            raise ValueError(f"its weights have other shapes: {error}") from error
    expected = peft.get_peft_model_state_dict(adapted)
    if wrong := sorted(expected.keys() ^ weights.keys()):
        raise UsageError(
            f"{where}: {folder} was trained on another model ({len(wrong)} weights are missing or left over, such as {wrong[0]})"
        )
    return adapted.get_base_model()


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of the language model, which can recompute their activations."""
    return [module for module in language_model(model).modules() if isinstance(module, GradientCheckpointingLayer)]


def enable_gradient_checkpointing(model: nn.Module, layers: int | None = None) -> None:
    """Enable activation checkpointing for `layers` layers of the language model, evenly spread; None for all.

    A frozen vision encoder saves no activations; the trained layers of another one are recomputed where any layer is.
    """
    language_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own_layers = checkpointed_layers(model)
    num_layers = len(own_layers)
    count = num_layers if layers is None else layers
    for i, layer in enumerate(own_layers):
        layer.gradient_checkpointing = (i + 1) * count // num_layers > i * count // num_layers
    others = [layer for layer in unwrapped(model).modules() if isinstance(layer, GradientCheckpointingLayer) and layer not in own_layers]
    for layer in others:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = count > 0
