"""What families of transformers' own classes share: LoRA by PEFT, their checkpoints, the loss over padded batches.

Shapes: B samples, T tokens, S supervised positions, V vocabulary size.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import peft
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import modeling_utils

from atomic_io import atomic_write_folder, write_text
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import UsageError
from model.checkpoint_manifest import verify, write_manifest
from model.family import Collate, LoadOptions, read_model_config
from model.family_config import FamilyConfig, ParamGroup
from model.hub.model_card import whole_model_card
from model.param_groups import set_trainable, unwrapped
from model.processors.sample_processor import SampleProcessor
from model.quantization import Quantization
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


class StockFamily(ABC):
    """Implements model.family.Family, but for what is particular: the processor, how the model is built, its loss on a batch."""

    name: ClassVar[str]
    """Of the family."""
    config_class: ClassVar[type[FamilyConfig]]
    """Settings of the family."""
    whole_model_types: ClassVar[frozenset[str]]
    """`model_type` of whole models, which are loaded as they are."""
    new_groups: ClassVar[tuple[ParamGroup, ...]] = ()
    """Groups that are newly initialised, not pre-trained."""

    @abstractmethod
    def load_processor(self, folder: Path) -> SampleProcessor: ...

    @abstractmethod
    def load_base(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        """The pre-trained model, frozen and in eval mode, with `group_paths`. Raises UsageError."""

    @abstractmethod
    def shape(self, config: Any, processor: Any) -> Any:
        """The model on the meta device, unquantised, frozen, with `group_paths`. Raises UsageError."""

    @abstractmethod
    def load_whole(self, folder: Path, quantization: Quantization, options: LoadOptions) -> Any:
        """A whole model, frozen and in eval mode. Raises UsageError."""

    @abstractmethod
    def lora_config(self, model: Any, config: Any, run_groups: Collection[ParamGroup]) -> peft.LoraConfig:
        """PEFT's config. run_groups: groups of all stages of the run. Raises UsageError."""

    @abstractmethod
    def logits(self, model: Any, inputs: dict[str, Any], supervised: torch.Tensor) -> torch.Tensor:
        """Logits [S, V] at the supervised positions [B, T] of a batch, by the model's own forward pass."""

    def build(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        """The pre-trained model, frozen, with newly initialised parts where it has any. Raises UsageError."""
        model = self.load_base(config, processor, options)
        model.settings, model.trained_groups, model.base_sha256 = config, (), base_digests(config)
        return model

    def build_without_weights(self, config: Any, processor: Any) -> Any:
        """The model on the meta device, unquantised: shapes alone. Raises UsageError."""
        model = self.shape(config, processor)
        model.settings, model.trained_groups, model.base_sha256 = config, (), {}
        return model

    def load(
        self,
        folder: Path,
        options: LoadOptions,
        *,
        quantization: Literal["as_trained"] | Quantization = "as_trained",
        trainable: bool = False,
    ) -> Any:
        """The base model with the trained weights. A whole model of the family is loaded as it is, frozen.

        Raises UsageError when the folder is damaged, or its base model cannot be loaded or is another one.
        """
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
        if trainable:
            return model
        return freeze_for_answering(model, base.get_input_embeddings().weight.dtype)

    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write trained weights and settings."""
        save_tuned(model, folder, state, self.new_groups)

    def settings(self, folder: Path) -> FamilyConfig:
        """The model settings of a checkpoint. Raises UsageError."""
        return read_checkpoint_config(folder, self.config_class, self.whole_model_types).settings

    def configure_trainable(self, model: Any, config: Any, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]) -> Any:
        """Make the groups in `train` trainable; LoRA is added when first needed. Raises UsageError as model.lora does."""
        if "lora" in train and not isinstance(model, PeftModel):
            if config.lora is None:
                raise UsageError("train.stages: lora cannot be trained while model.lora is null")
            model = peft.get_peft_model(model, self.lora_config(model, config, run_groups))
        if "language" in train and config.quantization != "none":
            raise UsageError(f"train.stages: language cannot be trained while model.quantization is {config.quantization}; train lora")
        inner = unwrapped(model)
        inner.trained_groups = tuple(dict.fromkeys([*inner.trained_groups, *train]))
        inner.settings = config
        set_trainable(model, train)
        return model

    def fuse(self, model: Any) -> None:
        """There is nothing to fuse."""
        del model

    def limit_logits(self, model: Any, gib: float) -> None:
        """Logits are computed at supervised positions alone, in one piece."""
        del model, gib

    def collator(self, processor: Any, collate: Collate) -> Collate:
        """The batches of `collate` as they are."""
        del processor
        return collate

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """The vocabulary matrix is multiplied at supervised positions only."""
        labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised = labels != IGNORE_INDEX
        return summed_loss(self.logits(model, inputs, supervised), labels[supervised], num_items)

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


def logits_at(model: Any, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] at the positions of a mask [B, T]. The vocabulary matrix is multiplied there alone, where the installed transformers
    can do that."""
    if hasattr(modeling_utils, "slice_logits_to_keep"):
        kept: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=positions).logits
        return kept
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[positions]
    return logits


def zero_through(model: Any, name_parts: Sequence[str], device: torch.device) -> torch.Tensor:
    """Zero that depends on the trained weights whose names have one of these parts. In a batch without images, each rank of a distributed
    run must still give a gradient for every trained weight."""
    trained = [p for name, p in model.named_parameters() if p.requires_grad and any(part in name for part in name_parts)]
    return sum((p.sum() * 0.0 for p in trained), start=torch.zeros((), device=device))


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int) -> torch.Tensor:
    """Cross entropy of logits [S, V], summed and divided by `num_items`."""
    return functional.cross_entropy(logits.float(), labels, reduction="sum") / num_items
