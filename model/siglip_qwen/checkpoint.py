"""Saving and loading checkpoints: trained weights and settings; base models are loaded again from where they came.

adapter_model.safetensors   connector and LoRA weights in PEFT's format (without LoRA: the connector only)
adapter_config.json         PEFT's config, with LoRA only
trained_weights.safetensors weights of the vision encoder that were trained in full, under the names of the model
language/                   the language model in its own format, if it was trained in full
config.json                 names of the base models and all model settings; the folder of `train.init_from` if that is the base
whole.json                  manifest, written last (see model.checkpoint_manifest); a folder without it is incomplete
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from errors import UsageError, loading
from model.checkpoint_manifest import model_digest, verify
from model.family import DEFAULT_OPTIONS, LoadedQuantization, LoadOptions, read_model_config
from model.family_config import ParamGroup
from model.hub import llava_import
from model.lora_merging import read_plain_lora
from model.param_groups import has_adapters, param_group_of, set_trainable
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from model.siglip_qwen.adapters import PEFT_PREFIX, base_model, configure_trainable, trained_state_dict
from model.siglip_qwen.assembly import build, build_from_model, build_shape, causal_language_model
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import CONNECTOR, VisionLanguageModel
from model.siglip_qwen.vision_language_config import VisionLanguageConfig
from model.stock.tuned_checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TRAINED_WEIGHTS,
    check_shapes,
    freeze_for_answering,
    parse_settings,
    save_in_full,
    save_tensors,
)
from visual.hub_name import pretrained

# PEFT is imported where it is used: it takes two seconds, and asking a checkpoint needs none of it.
if TYPE_CHECKING:
    from peft import PeftModel

LANGUAGE_FOLDER = "language"
VISION: tuple[ParamGroup, ...] = ("vision",)

FolderForm = Literal["adapter", "merged", "llava"]
"""A checkpoint with the trained weights alone, a whole model in Tessera's format, or one in the LLaVA layout."""


def save(model: "VisionLanguageModel | PeftModel", folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the trained weights and the settings, as `model.family.Family.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = base_model(model)
    save_tensors(trained_state_dict(model, state), folder / ADAPTER_WEIGHTS)
    if has_adapters(model):
        model.peft_config["default"].save_pretrained(folder)
    if inner.config.vision_weights:
        save_in_full(model, VISION, folder, state)
    if inner.config.language_weights:
        _save_language_model(inner, folder / LANGUAGE_FOLDER, state)
    inner.config.save_pretrained(folder)


def load(
    folder: Path,
    options: LoadOptions = DEFAULT_OPTIONS,
    *,
    quantization: LoadedQuantization = "as_trained",
    trainable: bool = False,
) -> "VisionLanguageModel | PeftModel":
    """Build the base model as for training and load the trained weights into it. A merged model is loaded directly.

    Plain LoRA on an unquantised fp32 model that is not trained is merged into its weights; otherwise PEFT wraps the model: merged
    weights in 16 bits would round small updates away. The arguments are those of `model.family.Family.load`.
    """
    if not trainable:
        verify(folder)
    vlm_config, dtype = read_config(folder), options.weight_dtype
    if is_merged(folder):
        return _load_merged(folder, "none" if quantization == "as_trained" else quantization, dtype, options.device)
    config = settings(folder)
    if quantization != "as_trained":
        config = dataclasses.replace(config, quantization=quantization)
    merges = not trainable and config.quantization == "none" and dtype == torch.float32 and options.load_weights
    merged = _load_with_merged_adapters(folder, config, options) if merges else None
    model = merged or load_trained(folder, config, options)
    base_model(model).config.settings = vlm_config.settings
    if trainable:
        groups: list[ParamGroup] = ["connector", *(vlm_config.adapter_groups if has_adapters(model) else ())]
        in_full: dict[ParamGroup, bool] = {"language": vlm_config.language_weights, "vision": vlm_config.vision_weights}
        set_trainable(model, [*groups, *(group for group, is_saved in in_full.items() if is_saved)])
        if vlm_config.language_weights and options.load_weights:
            _load_language_model(model, folder)  # once more, in fp32: `build` rounded it to `dtype`
        if vlm_config.vision_weights and options.load_weights:
            _load_vision_weights(model, folder)  # the same
        return model
    return freeze_for_answering(model, dtype)


def load_trained(folder: Path, config: SiglipQwenConfig, options: LoadOptions) -> "VisionLanguageModel | PeftModel":
    """The base model with a checkpoint's weights; its connector and LoRA adapters are trainable.

    config: of the checkpoint (not of a whole model), or of a run that starts from it with adapters of the same shape.
    """
    base = _build_base(folder, config, options)
    adapted = read_config(folder).adapter_groups if (folder / ADAPTER_CONFIG).exists() else ()
    model = configure_trainable(base, config, ("connector", *adapted))
    if options.load_weights:
        _load_trained(model, folder)
    return model


def _build_base(folder: Path, config: SiglipQwenConfig, options: LoadOptions) -> VisionLanguageModel:
    """The frozen model that a checkpoint's weights belong to, with a newly initialised connector."""
    vlm_config = read_config(folder)
    own_language = str(folder / LANGUAGE_FOLDER) if vlm_config.language_weights else None
    if vlm_config.base_folder is None:
        base = build(dataclasses.replace(config, language=own_language or config.language), vlm_config.image_token_id, options)
        base.config.settings = dataclasses.asdict(config)
    elif options.load_weights:
        base = build_from_model(load_whole(recorded_base_folder(folder, vlm_config)), config, options, own_language)
        base.config.image_token_id = vlm_config.image_token_id
    else:
        base = build_shape(config, vlm_config, options)
    base.config.language_weights, base.config.base_folder = vlm_config.language_weights, vlm_config.base_folder
    base.config.vision_weights = vlm_config.vision_weights
    if vlm_config.vision_weights and options.load_weights:
        _load_vision_weights(base, folder)
    return base


def _load_with_merged_adapters(folder: Path, config: SiglipQwenConfig, options: LoadOptions) -> VisionLanguageModel | None:
    """The unquantised fp32 model of a checkpoint, adapters merged; None if PEFT has to load them."""
    adapter_config = folder / ADAPTER_CONFIG
    lora = read_plain_lora(adapter_config) if adapter_config.exists() else None
    if lora is None and adapter_config.exists():
        return None
    model = _build_base(folder, config, options)
    connector = {key: value.shape for key, value in model.state_dict().items() if key.startswith(CONNECTOR)}
    tensors = _read_trained(folder, connector | (lora.expected_shapes(model) if lora else {}))
    model.load_state_dict({key: tensors.pop(key) for key in connector}, strict=False)
    if lora is not None:
        lora.merge(model, tensors)
    return model


def load_whole(folder: Path) -> VisionLanguageModel:
    """The whole model of a folder of any form, unquantised, on the CPU, adapters merged in fp32; others in the dtype of their file."""
    verify(folder)
    form = folder_form(folder)
    if form == "adapter":
        return merge(folder)
    return llava_import.load(folder) if form == "llava" else _load_merged(folder, "none", "auto", "cpu")


def recorded_base_folder(folder: Path, vlm_config: VisionLanguageConfig) -> Path:
    """The folder that a run started from, whose model is the base of its checkpoints. Raises UsageError when it does not exist any more, or
    holds other weights than when the run started."""
    recorded = vlm_config.base_folder or {}
    base = Path(str(recorded.get("path")))
    if not base.is_dir():
        raise UsageError(
            f"{folder}: its run started from {base} (train.init_from), which does not exist, and the checkpoint holds only what was "
            "trained since: put that folder back, or correct base_folder.path in config.json"
        )
    if model_digest(base) != recorded.get("sha256"):
        raise UsageError(
            f"{folder}: its run started from {base} (train.init_from), which holds other weights now: the SHA-256 of its files is not "
            "that of base_folder in config.json"
        )
    return base


def merge(folder: Path, *, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    """Merge the LoRA weights into the unquantised base model, in fp32; the result is then cast to `dtype`."""
    model = load(folder, LoadOptions(torch.float32), quantization="none")
    merged = model.merge_and_unload() if has_adapters(model) else model
    inner = base_model(merged)
    inner.config.settings = {**(inner.config.settings or {}), "lora": None, "vision_lora": None, "quantization": "none"}
    inner.config.language_weights = inner.config.vision_weights = False
    inner.config.base_folder = None
    inner.requires_grad_(False).eval().to(dtype)
    return inner


def settings(folder: Path) -> SiglipQwenConfig:
    """Model settings of a checkpoint. Raises UsageError when the folder is not a checkpoint or a setting is invalid."""
    return parse_settings(folder, read_config(folder).settings, SiglipQwenConfig)


def is_merged(folder: Path) -> bool:
    """True if the folder contains a complete merged model rather than a checkpoint."""
    return any(folder.glob("model*.safetensors"))


def folder_form(folder: Path) -> FolderForm:
    """The form of a folder with a model. Raises UsageError when it holds no model, or another one."""
    if read_model_config(folder).get("model_type") == "llava":
        return "llava"
    read_config(folder)
    return "merged" if is_merged(folder) else "adapter"


def read_config(folder: Path) -> VisionLanguageConfig:
    """The config of a checkpoint or a merged model. Raises UsageError when the folder is neither."""
    raw = read_model_config(folder)
    if raw.get("model_type") != VisionLanguageConfig.model_type:
        raise UsageError(f"{folder}: not a Tessera checkpoint but a {raw.get('model_type')} model")
    with loading("checkpoint", str(folder)):
        return VisionLanguageConfig(**raw)


def _load_trained(model: "VisionLanguageModel | PeftModel", folder: Path) -> None:
    tensors = _read_trained(folder, {key.removeprefix(PEFT_PREFIX): value.shape for key, value in trained_state_dict(model).items()})
    if has_adapters(model):
        import peft

        peft.set_peft_model_state_dict(model, {PEFT_PREFIX + key: value for key, value in tensors.items()})
    else:
        model.load_state_dict(tensors, strict=False)


def _read_trained(folder: Path, expected: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The trained weights by their names in the model. Raises UsageError unless they have exactly the expected names and shapes."""
    with loading("checkpoint", str(folder)):
        tensors = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(folder / ADAPTER_WEIGHTS).items()}
    check_shapes(folder / ADAPTER_WEIGHTS, tensors, expected)
    return tensors


def _load_vision_weights(model: "VisionLanguageModel | PeftModel", folder: Path) -> None:
    """Load the vision encoder's weights that were trained in full. Raises UsageError unless they are exactly those."""
    path, inner = folder / TRAINED_WEIGHTS, base_model(model)
    with loading("checkpoint", str(folder)):
        tensors = load_file(path)
    state, paths = inner.state_dict(), inner.group_paths
    check_shapes(path, tensors, {name: value.shape for name, value in state.items() if param_group_of(name, paths) == "vision"})
    inner.load_state_dict(tensors, strict=False)


def _load_language_model(model: "VisionLanguageModel | PeftModel", folder: Path) -> None:
    with loading("checkpoint", str(folder)):
        language = AutoModelForCausalLM.from_pretrained(**pretrained(folder / LANGUAGE_FOLDER), dtype=torch.float32)
    base_model(model).model.language_model.load_state_dict(language.model.state_dict())
    base_model(model).lm_head.load_state_dict(language.lm_head.state_dict())


def _save_language_model(model: VisionLanguageModel, folder: Path, state: dict[str, torch.Tensor] | None) -> None:
    """Save the language model as a stand-alone causal language model that transformers can load."""
    language = causal_language_model(model)
    if state is not None:
        renamed = {key.replace("model.language_model.", "model.", 1): value for key, value in state.items()}
        state = {key: value for key, value in renamed.items() if key in language.state_dict()}
    language.save_pretrained(folder, state_dict=state)


def _load_merged(
    folder: Path, quantization: Quantization, dtype: torch.dtype | Literal["auto"], device: torch.device | str
) -> VisionLanguageModel:
    skip_modules = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    quantized = None if dtype == "auto" else quantization_config(quantization, dtype, skip_modules)
    options = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": device}}
    with loading("checkpoint", str(folder)):
        model: VisionLanguageModel = VisionLanguageModel.from_pretrained(**pretrained(folder), dtype=dtype, **options)
    disable_avx512bf16(model)
    model.requires_grad_(False).eval()
    if quantized is None:
        model.to(device)
    return model
