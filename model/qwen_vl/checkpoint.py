"""Saving and loading checkpoints of Qwen vision-language models: what was trained; the base model is loaded again from where it came.

adapter_config.json, adapter_model.safetensors   LoRA, and a merger trained with it, in PEFT's format
trained_weights.safetensors                      groups trained in full without PEFT, under the names of transformers' class
config.json                                      {"model_type": "tessera_qwen_vl", "settings": model settings, "trained_groups": [...]}
whole.json                                       manifest, written last
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_args

import peft
import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from atomic_io import atomic_write_folder, write_json, write_text
from errors import UsageError, loading
from model.chat_processor import PROCESSOR_SETTINGS_FILE
from model.checkpoint_manifest import verify, write_manifest
from model.family import LoadOptions, read_model_config
from model.family_config import ParamGroup
from model.hub.model_card import whole_model_card
from model.param_groups import param_group_of, set_trainable, unwrapped
from model.quantization import Quantization
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.modeling import CLASSES, build, read_config
from model.qwen_vl.processor import QwenVlProcessor

MODEL_TYPE = "tessera_qwen_vl"
TRAINED_WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "trained_weights.safetensors", "adapter_config.json", "adapter_model.safetensors"


def save(model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the trained weights and the settings. Call `checkpoint_manifest.write_manifest` once all other files are written too."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = unwrapped(model)
    in_full = _trained_in_full(model, inner.trained_groups)
    if isinstance(model, PeftModel):
        adapters = peft.get_peft_model_state_dict(model, state_dict=state)
        _save(adapters, folder / ADAPTER_WEIGHTS)
        model.peft_config["default"].save_pretrained(folder)
    if in_full:
        values = model.state_dict() if state is None else state
        _save({name.removeprefix("base_model.model."): values[name] for name in in_full}, folder / TRAINED_WEIGHTS)
    settings = dataclasses.asdict(inner.settings)
    write_json(folder / "config.json", {"model_type": MODEL_TYPE, "settings": settings, "trained_groups": list(inner.trained_groups)})


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # Tied weights share memory, which the format does not store.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def _trained_in_full(model: Any, groups: tuple[ParamGroup, ...]) -> list[str]:
    """Names of the parameters that the run trains and that are not in PEFT's file."""
    paths = unwrapped(model).group_paths
    names = (name for name, _ in model.named_parameters() if ".modules_to_save." not in name)
    return [name for name in names if (group := param_group_of(name, paths)) in groups and group != "lora"]


def load(
    folder: Path, options: LoadOptions, *, quantization: Literal["as_trained"] | Quantization = "as_trained", trainable: bool = False
) -> PreTrainedModel | PeftModel:
    """The base model with the trained weights. A whole model of the family is loaded as it is, frozen.

    Raises UsageError when the folder is damaged, or its base model cannot be loaded or has other shapes.
    """
    if not trainable:
        verify(folder)
    raw = read_model_config(folder)
    if raw.get("model_type") in CLASSES:
        return build("checkpoint", str(folder), "none" if quantization == "as_trained" else quantization, options)
    config = settings(folder)
    if quantization != "as_trained":
        config = dataclasses.replace(config, quantization=quantization)
    groups = tuple(group for group in raw.get("trained_groups", ()) if group in get_args(ParamGroup))
    model: Any = build("checkpoint", config.path, config.quantization, options)
    model.trained_groups, model.settings = groups, settings(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        with loading("checkpoint", str(folder)):
            adapter_config = peft.PeftConfig.from_pretrained(str(folder))
            model = peft.get_peft_model(model, adapter_config)
            tensors = load_file(folder / ADAPTER_WEIGHTS)
        _check_names(folder / ADAPTER_WEIGHTS, tensors, peft.get_peft_model_state_dict(model))
        peft.set_peft_model_state_dict(model, tensors)
    set_trainable(model, groups)
    expected = _trained_in_full(model, groups)
    if expected:
        with loading("checkpoint", str(folder)):
            tensors = load_file(folder / TRAINED_WEIGHTS)
        own = {name.removeprefix("base_model.model."): parameter for name, parameter in model.named_parameters() if name in expected}
        _check_names(folder / TRAINED_WEIGHTS, tensors, own)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
    if trainable:
        return model
    dtype = next(p.dtype for name, p in model.named_parameters() if "embed_tokens" in name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    frozen: PreTrainedModel | PeftModel = model.requires_grad_(False).eval()
    return frozen


def export_merged(folder: Path, out: Path, dtype: torch.dtype, data_report: str | None) -> None:
    """Write the model with its adapters merged in fp32, as transformers' own class loads it. Raises UsageError when `out` is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: it exists already; choose a new folder")
    config, processor = settings(folder), load_processor(folder)
    model: Any = load(folder, LoadOptions(dtype=torch.float32), quantization="none")
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    with atomic_write_folder(out) as temp_path:
        merged.to(dtype).save_pretrained(temp_path)
        processor.save(temp_path)
        write_text(temp_path / "README.md", whole_model_card(config.path, dataclasses.asdict(config), dtype, data_report))
        write_manifest(temp_path)


def _check_names(path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise UsageError unless a file holds the expected weights in their shapes."""
    names = found.keys() | expected.keys()
    wrong = sorted(n for n in names if n not in found or n not in expected or found[n].shape != expected[n].shape)
    if wrong:
        raise UsageError(f"{path}: {len(wrong)} weights are missing, unexpected or of another shape, such as {wrong[0]}")


def settings(folder: Path) -> QwenVlConfig:
    """Model settings of a checkpoint. Raises UsageError when the folder is not a checkpoint or a setting is invalid."""
    raw = read_model_config(folder)
    if raw.get("model_type") in CLASSES:
        raise UsageError(f"{folder}: a whole model, which does not say what it was tuned from; take untuned out of eval.controls")
    try:
        return TypeAdapter(QwenVlConfig).validate_json(json.dumps(raw.get("settings")))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UsageError(f"{folder / 'config.json'}: settings.{key}: {problem['msg'].lower()}") from error


def load_processor(folder: Path) -> QwenVlProcessor:
    """The processor of a checkpoint, of a whole model that we exported, or of a published one. Raises UsageError."""
    if read_model_config(folder).get("model_type") not in CLASSES or (folder / PROCESSOR_SETTINGS_FILE).is_file():
        return QwenVlProcessor.load(folder)
    limit = int(read_config("checkpoint", str(folder)).get_text_config().max_position_embeddings)
    return QwenVlProcessor.from_pretrained("checkpoint", str(folder), max_length=limit)
