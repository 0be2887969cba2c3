"""What families of transformers' own classes share: LoRA by PEFT, their checkpoints, the loss over padded batches.

Shapes: B samples, T tokens, S supervised positions, V vocabulary size.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import modeling_utils

from atomic_io import atomic_write_folder, write_text
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import UsageError
from model.checkpoint_manifest import verify, write_manifest
from model.family import Family, LoadedQuantization, LoadOptions, read_model_config
from model.family_config import FamilyConfig, ParamGroup
from model.hub.model_card import whole_model_card
from model.lora import language_lora_config
from model.param_groups import set_trainable, unwrapped
from model.processors.sample_processor import PROCESSOR_SETTINGS_FILE, SampleProcessor
from model.quantization import Quantization
from model.stock.stock_model import StockModel
from model.stock.tuned_checkpoint import (
    base_digests,
    check_base,
    freeze_for_answering,
    load_trained,
    read_checkpoint_config,
    save_tuned,
)

NOT_MODEL_INPUTS = ("labels", "sample_ids", "padded_right")
"""Keys of a batch that the classes do not take."""


class StockFamily(Family):
    """Implements all but what is particular: the processor, how the model is built, its loss on a batch."""

    name: ClassVar[str]
    """Of the family."""
    config_class: ClassVar[type[FamilyConfig]]
    """Settings of the family."""
    processor_class: ClassVar[type[SampleProcessor]]
    lora_names: ClassVar[Mapping[str, str]] = {}
    """What the language model calls layers that model.lora may name differently."""
    new_groups: ClassVar[tuple[ParamGroup, ...]] = ()
    """Groups that are newly initialised, not pre-trained."""

    @property
    def whole_model_types(self) -> Collection[str]:
        """`model_type` of whole models, which are loaded as they are."""
        return ()

    @abstractmethod
    def load_base(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        """The pre-trained model, frozen and in eval mode, with `group_paths`. Raises UsageError."""

    @abstractmethod
    def shape(self, config: Any, processor: Any) -> Any:
        """The model on the meta device, unquantised, frozen, with `group_paths`. Raises UsageError."""

    def connector_modules(self, model: Any) -> list[str] | None:
        """Modules of the connector, which are saved with the adapters where the run trains it, so that stock PEFT loads both; None to
        save it beside them."""
        del model
        return None

    @abstractmethod
    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        """Logits [S, V] at the supervised positions [B, T] of a batch, by the model's own forward pass."""

    def load_processor(self, folder: Path) -> SampleProcessor:
        return self.processor_class.load(folder)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        """A whole model, frozen and in eval mode. Raises UsageError."""
        raise NotImplementedError

    def build(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        model = self.load_base(config, processor, options)
        model.settings, model.trained_groups, model.base_sha256 = config, (), base_digests(config)
        return model

    def build_without_weights(self, config: Any, processor: Any) -> Any:
        model = self.shape(config, processor)
        model.settings, model.trained_groups, model.base_sha256 = config, (), {}
        return model

    def load(self, folder: Path, options: LoadOptions, *, quantization: LoadedQuantization = "as_trained", trainable: bool = False) -> Any:
        """The base model with the trained weights. A whole model of the family is loaded as it is, frozen."""
        if not trainable:
            verify(folder)
        if read_model_config(folder).get("model_type") in self.whole_model_types:
            return self.load_whole(folder, "none" if quantization == "as_trained" else quantization, options)
        saved = read_checkpoint_config(folder, self.config_class, self.whole_model_types)
        check_base(folder, saved)
        config = saved.settings if quantization == "as_trained" else dataclasses.replace(saved.settings, quantization=quantization)
        base = self.load_base(config, self.load_processor(folder), options)
        base.settings, base.trained_groups, base.base_sha256 = saved.settings, saved.trained_groups, saved.base_sha256
        model = load_trained(base, folder, saved.trained_groups, self.new_groups)
        return model if trainable else freeze_for_answering(model, base.get_input_embeddings().weight.dtype)

    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        save_tuned(model, folder, state, self.new_groups)

    def settings(self, folder: Path) -> FamilyConfig:
        return read_checkpoint_config(folder, self.config_class, self.whole_model_types).settings

    def configure_trainable(self, model: Any, config: Any, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]) -> Any:
        if "lora" in train and not isinstance(model, PeftModel):
            if config.lora is None:
                raise UsageError("train.stages: lora cannot be trained while model.lora is null")
            saved = self.connector_modules(model) if "connector" in run_groups else None
            model = peft.get_peft_model(model, language_lora_config(model, config.lora, saved, self.lora_names))
        if "language" in train and config.quantization != "none":
            raise UsageError(f"train.stages: language cannot be trained while model.quantization is {config.quantization}; train lora")
        inner = unwrapped(model)
        inner.trained_groups = tuple(dict.fromkeys([*inner.trained_groups, *train]))
        inner.settings = config
        set_trainable(model, train)
        return model

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """The vocabulary matrix is multiplied at supervised positions only."""
        labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised = labels != IGNORE_INDEX
        logits = self.logits(model, inputs, supervised)
        return functional.cross_entropy(logits.float(), labels[supervised], reduction="sum") / num_items

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        """Write the model with its adapters merged in fp32, as transformers' own class loads it."""
        if export_format != "merged":
            raise UsageError(f"--format {export_format}: a {self.name} model has a layout of its own; use --format merged")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out {out}: it exists already; choose a new folder")
        config, processor = self.settings(folder), self.load_processor(folder)
        model = self.load(folder, LoadOptions(dtype=torch.float32), quantization="none")
        merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
        bases = " and ".join(str(getattr(config, key)) for key in config.base_models)
        with atomic_write_folder(out) as temp_path:
            merged.to(dtype).save_pretrained(temp_path)
            processor.save(temp_path)
            write_text(temp_path / "README.md", whole_model_card(bases, dataclasses.asdict(config), dtype, data_report))
            write_manifest(temp_path)
        return []


class WholeModelFamily(StockFamily):
    """A family whose base is one published model, `config.path`, in one of transformers' own classes."""

    stock: ClassVar[StockModel]
    image_modules: ClassVar[tuple[str, ...]] = ()
    """Parts of the names of the weights that only images go through, where a batch may have none."""

    @property
    def whole_model_types(self) -> Collection[str]:
        return self.stock.model_types

    @abstractmethod
    def published_processor(self, key: str, path: str) -> SampleProcessor:
        """The processor of a published model, for as long texts as it can take. key: setting that names it. Raises UsageError."""

    def load_processor(self, folder: Path) -> SampleProcessor:
        if read_model_config(folder).get("model_type") in self.whole_model_types and not (folder / PROCESSOR_SETTINGS_FILE).is_file():
            return self.published_processor("checkpoint", str(folder))
        return super().load_processor(folder)

    def load_base(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        del processor
        return self.stock.load("model.path", config.path, config.quantization, options)

    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        return self.stock.load("checkpoint", str(folder), quantization, options)

    def shape(self, config: Any, processor: Any) -> Any:
        del processor
        return self.stock.shape("model.path", config.path)

    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        """The vocabulary matrix is multiplied at these positions alone where the installed transformers can do that."""
        names = inputs.keys() - NOT_MODEL_INPUTS if len(inputs["pixel_values"]) else ("input_ids", "attention_mask")
        sliced = hasattr(modeling_utils, "slice_logits_to_keep")
        arguments = {"use_cache": False, **({"logits_to_keep": supervised} if sliced else {})}
        logits: torch.Tensor = model(**{name: inputs[name] for name in names}, **arguments).logits
        return logits if sliced else logits[supervised]

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """In a batch without images, each rank of a distributed run must still give a gradient for every trained weight: zero."""
        loss = super().loss(model, inputs, num_items)
        if len(inputs["pixel_values"]):
            return loss
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        unused = [parameter for name, parameter in named if any(part in name for part in self.image_modules)]
        return loss + sum((parameter.sum() * 0.0 for parameter in unused), start=torch.zeros((), device=loss.device))
