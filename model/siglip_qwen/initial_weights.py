"""The weights that a run starts from (`train.init_from`): a checkpoint, a run's folder, a merged model or a LLaVA folder.

What continues and what becomes the base, for a run with the model settings M:

- a checkpoint without LoRA, or with adapters of M's settings (dropout apart): its connector and adapters continue on M's base;
- a checkpoint with other adapters, or with a vision encoder or language model trained in full, a merged model, a LLaVA folder: their
  weights, merged in fp32, are the base, under new adapters. The run's checkpoints then name that folder and its SHA-256 (`base_folder`
  in config.json).
- A run that trains the whole language model saves it, so it needs such a folder for another vision encoder than M's only.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from errors import UsageError, loading
from model.checkpoint_manifest import latest_checkpoint, model_digest, verify
from model.family import LoadOptions
from model.hub import llava_import
from model.processors.sample_processor import SampleProcessor
from model.siglip_qwen import checkpoint
from model.siglip_qwen.assembly import build_from_model, build_shape, language_config
from model.siglip_qwen.config import ConnectorConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.vision_language_config import VisionLanguageConfig
from model.stock.tuned_checkpoint import ADAPTER_CONFIG
from visual import vision_encoder
from visual.hub_name import pretrained

KEY = "train.init_from"

SHARED_KEYS = frozenset(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"))
VISION_KEYS = SHARED_KEYS | {"image_size", "patch_size"}
LANGUAGE_KEYS = SHARED_KEYS | {"model_type", "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings"}
"""Config keys of the two base models that decide whether the weights of one fit into the other."""


@dataclass(frozen=True)
class InitialWeights:
    """A folder to start from. config: of the model in it."""

    folder: Path
    form: checkpoint.FolderForm
    config: VisionLanguageConfig

    @property
    def digest(self) -> str:
        """SHA-256 of its files."""
        return model_digest(self.folder)

    def continues(self, model: SiglipQwenConfig, trains_language: bool) -> bool:
        """Whether the weights continue as they are on the base models of `model`, instead of becoming the base themselves."""
        if self.form != "adapter" or self.config.language_weights or self.config.vision_weights:
            return False
        if not (self.folder / ADAPTER_CONFIG).exists():
            return True
        return not trains_language and _lora_shape(checkpoint.settings(self.folder)) == _lora_shape(model)

    def describe(self, model: SiglipQwenConfig, trains_language: bool) -> str:
        """What becomes of the weights, in words."""
        if not self.continues(model, trains_language):
            return "its weights, merged, are the base"
        has_adapters = (self.folder / ADAPTER_CONFIG).exists()
        return "its connector and LoRA adapters continue" if has_adapters else "its connector continues"


def find(path: Path) -> InitialWeights:
    """The folder that `train.init_from` names, or the latest checkpoint in it. Raises UsageError when the folder does not exist, holds no
    model that can be read, or is damaged."""
    if not path.is_dir():
        raise UsageError(f"{KEY}: {path} does not exist (expected a checkpoint, a run's folder, a merged model or a LLaVA folder)")
    try:
        folder = path if (path / "config.json").is_file() else latest_checkpoint(path)
        verify(folder)
        form = checkpoint.folder_form(folder)
        config = llava_import.read_config(folder) if form == "llava" else checkpoint.read_config(folder)
    except UsageError as error:
        raise UsageError(f"{KEY}: {error}") from error
    return InitialWeights(folder, form, config)


def find_given(init_from: Path | None, required: bool) -> InitialWeights | None:
    """What `train.init_from` names; None without it, and for a folder that is gone but not required. Raises UsageError as `find`."""
    return None if init_from is None or not (required or init_from.is_dir()) else find(init_from)


def check_compatible(
    initial: InitialWeights, model: SiglipQwenConfig, processor: SampleProcessor, *, trains_connector: bool = False
) -> None:
    """Raise UsageError naming the first key of `model` with which the weights do not fit. Loads configs and a tokenizer only.

    A connector that the run trains may read another hidden state than before: it learns the new one.
    """
    old, folder = initial.config, initial.folder
    # A whole model brings its own embedding, which may have rows for tokens of its own.
    language_keys = LANGUAGE_KEYS if initial.form == "adapter" else LANGUAGE_KEYS - {"vocab_size"}
    for part, name, old_config, new_config, keys in (
        ("vision", model.vision, old.vision_config, vision_encoder.vision_config(model.vision), VISION_KEYS),
        ("language", model.language, old.text_config, language_config(model.language), language_keys),
    ):
        for key in sorted(keys):
            found, expected = getattr(old_config, key, None), getattr(new_config, key, None)
            if found != expected:
                # Settings do not name the parts of a LLaVA of others.
                before = (old.settings or {}).get(part) or f"the one in {folder}"
                raise UsageError(f"{KEY}: {folder}: model.{part} was {before} ({key} {found}), is {name} ({key} {expected})")
    states = old.vision_config.num_hidden_layers + 1
    for key, before, now in (
        *_connector_values(old.connector_config, model.connector),
        ("tiles.max", old.tiles, None if model.tiles is None else model.tiles.max),
        ("vision_feature_layer", _layer(old.vision_feature_layer, states), _layer(model.vision_feature_layer, states)),
        ("drop_first_patch", old.drop_first_patch, model.drop_first_patch),
    ):
        if before != now and not (trains_connector and key == "vision_feature_layer"):
            raise UsageError(f"{KEY}: {folder}: model.{key} was {before}, is {now}; its connector fits the former only")
    _check_same_vocabulary(folder, processor, old.text_config.vocab_size)


def start(
    initial: InitialWeights, model: SiglipQwenConfig, options: LoadOptions, *, trains_language: bool
) -> VisionLanguageModel | PeftModel:
    """The model of `model`'s settings with the initial weights; what is trainable is left to `adapters.configure_trainable`.

    Args:
        initial: checked by `check_compatible`.
        model: model settings of the run.
        options: how weights are loaded.
        trains_language: whether a stage of the run trains the whole language model, which then is in fp32 from the start.
    """
    if initial.continues(model, trains_language):
        return checkpoint.load_trained(initial.folder, model, options)
    base_options = replace(options, dtype=torch.float32) if trains_language else options
    if options.load_weights:
        started = build_from_model(checkpoint.load_whole(initial.folder), model, base_options)
    else:
        started = build_shape(model, initial.config, base_options)
    started.model.vision_tower.to(options.weight_dtype)
    base = vision_tower_folder(initial.folder) if trains_language else initial.folder
    started.config.base_folder = None if base is None else {"path": str(base), "sha256": model_digest(base)}
    started.config.language_weights = trains_language
    return started


def vision_tower_folder(folder: Path) -> Path | None:
    """The whole model whose vision encoder the model in a folder has; None if it is the one that its settings name."""
    if checkpoint.folder_form(folder) != "adapter":
        return folder
    vlm_config = checkpoint.read_config(folder)
    if vlm_config.vision_weights:
        return folder
    return None if vlm_config.base_folder is None else vision_tower_folder(checkpoint.recorded_base_folder(folder, vlm_config))


def _connector_values(before: ConnectorConfig, now: ConnectorConfig) -> list[tuple[str, Any, Any]]:
    """Keys that decide whether the weights of one connector fit the other, with their values in both."""
    keys = ("kind", "pool", "keep_ratio", *(("num_queries", "num_layers", "num_attention_heads") if now.has_queries else ()))
    return [(f"connector.{key}", getattr(before, key), getattr(now, key)) for key in keys]


def _lora_shape(model: SiglipQwenConfig) -> tuple[Any, ...] | None:
    """What decides whether the adapters of one configuration are those of another; dropout may differ."""
    return (
        None
        if model.lora is None
        else tuple(
            value
            for lora in (model.lora, model.vision_lora)
            for key, value in (vars(lora) if lora else {}).items()
            if key != "lora_dropout"
        )
    )


def _layer(layer: vision_encoder.FeatureLayer, states: int) -> vision_encoder.FeatureLayer:
    """The same hidden state as a negative index, so that -2 and 25 of 27 are equal."""
    return layer if isinstance(layer, str) else layer % states - states


def _check_same_vocabulary(folder: Path, processor: SampleProcessor, vocab_size: int) -> None:
    """The run's tokens must have the ids with which the weights were trained; the image token has no embedding of its own."""
    with loading(KEY, str(folder)):
        known = AutoTokenizer.from_pretrained(**pretrained(folder)).get_vocab()
    for token, index in processor.tokenizer.get_vocab().items():
        if index != processor.image_token_id and known.get(token) != index:
            raise UsageError(
                f"{KEY}: {folder}: its tokenizer gives {token!r} the id {known.get(token)}, that of model.language {index}; "
                "name the language model that it was made from"
            )
    if processor.image_token_id >= vocab_size:
        raise UsageError(f"{KEY}: {folder}: model.image_token has id {processor.image_token_id}, its embeddings are only {vocab_size}")
