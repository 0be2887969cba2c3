"""The checkpoint folder: what was trained, and how the rest is rebuilt around it.

adapter_model.safetensors   projector and adapter, in PEFT's format (a projector-only stage: just the projector)
adapter_config.json         where there is an adapter
language/                   the language model in its own format, where it was trained itself
config.json                 names of the base models and all model settings
whole.json                  names and sizes of all files, written last: a folder without it is half-written
"""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Literal

import peft
import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from atomic_io import write_json
from errors import UsageError, loading
from model.lora import base_model, configure_trainable, trained_state_dict
from model.param_groups import ParamGroup, set_trainable
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from model.siglip_qwen.assembly import build, default_dtype
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.modeling import VisionLanguageConfig, VisionLanguageModel

WEIGHTS_NAME, ADAPTER_CONFIG_NAME, LANGUAGE_FOLDER, MANIFEST_NAME = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "language",
    "whole.json",
)

log = logging.getLogger(__name__)


def save(model: VisionLanguageModel | PeftModel, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write what was trained and the settings. `mark_whole` belongs behind it, when all other files are there too.

    state: the model's whole state dict, where only a launcher that shards parameters can give it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inner = base_model(model)
    tensors = {key: value.detach().cpu().contiguous() for key, value in trained_state_dict(model, state).items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(folder)
    if inner.config.language_weights:
        _save_language_model(inner, folder / LANGUAGE_FOLDER, state)
    inner.config.save_pretrained(folder)


def load(
    folder: Path,
    *,
    quantization: Literal["as_trained"] | Quantization = "as_trained",
    trainable: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> VisionLanguageModel | PeftModel:
    """Rebuild the base as it was built for training and put the trained weights in; a merged model is loaded as it is.

    trainable: the trained groups in fp32 and trainable, else everything is frozen, in eval mode and in `dtype`
    (`default_dtype` unless given). Raises UsageError when the folder is no checkpoint or a base model is missing.
    """
    vlm_config = _config(folder)
    dtype = dtype or default_dtype(device)
    if is_merged(folder):
        return _load_merged(folder, "none" if quantization == "as_trained" else quantization, dtype, device)
    config = settings(folder)
    if quantization != "as_trained":
        config = dataclasses.replace(config, quantization=quantization)
    if vlm_config.language_weights:
        config = dataclasses.replace(config, language=str(folder / LANGUAGE_FOLDER))
    base = build(config, image_token_id=vlm_config.image_token_id, dtype=dtype, device=device)
    base.config.settings, base.config.language_weights = vlm_config.settings, vlm_config.language_weights
    groups: tuple[ParamGroup, ...] = ("connector", "lora") if (folder / ADAPTER_CONFIG_NAME).exists() else ("connector",)
    model = configure_trainable(base, config, groups)
    _load_trained(model, folder)
    if trainable:
        set_trainable(model, (*groups, "language") if vlm_config.language_weights else groups)
        if vlm_config.language_weights:
            _load_language_model(model, folder)  # again, in fp32: the base was built in `dtype`
        return model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def merge(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> VisionLanguageModel:
    """The adapter added into the unquantised base, exactly: in fp32, rounded to `dtype` afterwards."""
    model = load(folder, quantization="none", dtype=torch.float32, device=device)
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    inner = base_model(merged)
    inner.config.settings = {**(inner.config.settings or {}), "lora": None, "quantization": "none"}
    inner.config.language_weights = False
    inner.requires_grad_(False).eval().to(dtype)
    return inner


def settings(folder: Path) -> ModelConfig:
    """The model settings that a checkpoint was trained with. Raises UsageError when the folder is no checkpoint."""
    try:
        return TypeAdapter(ModelConfig).validate_json(json.dumps(_config(folder).settings))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UsageError(f"{folder / 'config.json'}: settings.{key}: {problem['msg'].lower()}") from error


def is_merged(folder: Path) -> bool:
    """True for a folder that holds a whole merged model rather than a checkpoint."""
    return any(folder.glob("model*.safetensors"))


def write_manifest(folder: Path) -> None:
    """Declare all files of a checkpoint written."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    sizes.pop(MANIFEST_NAME, None)
    write_json(folder / MANIFEST_NAME, sizes)


def manifest_mismatch(folder: Path) -> str | None:
    """Why a checkpoint folder is not whole; None when it is."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        sizes = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST_NAME}, so its writing was not finished"
    except ValueError:
        return f"{MANIFEST_NAME} is not readable"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size than was written"
    return None


def latest(folder: Path) -> Path:
    """The newest whole `checkpoint-<step>` in a folder; half-written ones are skipped with a message.

    Raises UsageError when there is none.
    """
    steps = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    for step in sorted(steps, reverse=True):
        reason = manifest_mismatch(steps[step])
        if reason is None:
            return steps[step]
        log.warning("skipping %s: %s", steps[step], reason)
    raise UsageError(f"{folder}: no whole checkpoint-<step> in it; train first (accelerate launch train.py)")


def _config(folder: Path) -> VisionLanguageConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder}: not a checkpoint (it has no config.json)")
    with loading("checkpoint", str(folder)):
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") != VisionLanguageConfig.model_type:
            raise UsageError(f"{folder}: not a checkpoint of ours but a {raw.get('model_type')} model")
        return VisionLanguageConfig(**raw)


def _load_trained(model: VisionLanguageModel | PeftModel, folder: Path) -> None:
    with loading("checkpoint", str(folder)):
        tensors = load_file(folder / WEIGHTS_NAME)
    expected = {key: value.shape for key, value in trained_state_dict(model).items()}
    wrong = sorted({key for key in expected.keys() | tensors.keys() if key not in tensors or tensors[key].shape != expected.get(key)})
    if wrong:
        raise UsageError(f"{folder / WEIGHTS_NAME}: {len(wrong)} weights are missing, left over or of another shape, such as {wrong[0]}")
    if isinstance(model, PeftModel):
        peft.set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict({key.removeprefix("base_model.model."): value for key, value in tensors.items()}, strict=False)


def _load_language_model(model: VisionLanguageModel | PeftModel, folder: Path) -> None:
    with loading("checkpoint", str(folder)):
        language = AutoModelForCausalLM.from_pretrained(folder / LANGUAGE_FOLDER, dtype=torch.float32)
    base_model(model).model.language_model.load_state_dict(language.model.state_dict())
    base_model(model).lm_head.load_state_dict(language.lm_head.state_dict())


def _save_language_model(model: VisionLanguageModel, folder: Path, state: dict[str, torch.Tensor] | None) -> None:
    """Write the language model as its own class would, so that any runtime can read it."""
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(model.config.text_config)
    language.model, language.lm_head = model.model.language_model, model.lm_head
    language.generation_config = model.generation_config
    if state is not None:
        renamed = {key.replace("model.language_model.", "model.", 1): value for key, value in state.items()}
        state = {key: value for key, value in renamed.items() if key in language.state_dict()}
    language.save_pretrained(folder, state_dict=state)


def _load_merged(folder: Path, quantization: Quantization, dtype: torch.dtype, device: torch.device | str) -> VisionLanguageModel:
    skip_modules = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    quantized = quantization_config(quantization, dtype, skip_modules)
    options = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": device}}
    with loading("checkpoint", str(folder)):
        model: VisionLanguageModel = VisionLanguageModel.from_pretrained(folder, dtype=dtype, **options)
    disable_avx512bf16(model)
    model.requires_grad_(False).eval()
    if quantized is None:
        model.to(device)
    return model
