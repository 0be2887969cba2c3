"""What the trainer, the data loaders and the answerers know about a model family.

In: the settings `model`, or a checkpoint folder. Out: a processor, a model, its loss, its checkpoints. Each family has a folder
model/<family>/ with a module `family`, whose FAMILY is a `Family`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from dataset.sample import Prompts
from errors import UsageError
from model.family_config import FamilyConfig, ParamGroup
from model.kernels.device_capability import default_dtype
from model.processors.sample_processor import SampleProcessor
from model.quantization import Quantization
from model.step_flops import StepFlops

Collate: TypeAlias = Callable[[Sequence[Any]], dict[str, Any]]
"""From encoded examples to model inputs, with the keys of `dataset.loading.collators`."""

LoadedQuantization: TypeAlias = Literal["as_trained"] | Quantization

MODEL_TYPES = {"tessera": "siglip_qwen", "llava": "llava", "qwen3_vl": "qwen_vl", "qwen2_5_vl": "qwen_vl", "blip-2": "blip2"}
"""The family of a folder whose config.json names none: an earlier checkpoint, or a whole model."""


@dataclass(frozen=True)
class LoadOptions:
    """How weights are loaded.

    Args:
        dtype: of frozen unquantised weights; None for that of the device.
        device: where the model is loaded.
        load_weights: False leaves pre-trained weights on the meta device, for a rank that another one sends them to.
        shardable: store 4-bit weights so that FSDP2 can shard them.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    load_weights: bool = True
    shardable: bool = False

    @property
    def weight_dtype(self) -> torch.dtype:
        """dtype of frozen unquantised weights."""
        return self.dtype or default_dtype(self.device)


DEFAULT_OPTIONS = LoadOptions()


class Family(ABC):
    """A kind of model. Settings are of the family's own class; models have `group_paths` (see model.param_groups)."""

    @abstractmethod
    def processor(self, config: Any, prompts: Prompts | None = None) -> SampleProcessor:
        """The processor for the pre-trained model of `config`, which records the prompts. Raises UsageError."""

    @abstractmethod
    def load_processor(self, folder: Path) -> SampleProcessor:
        """The processor of a checkpoint, of a whole model that we exported, or of a published one. Raises UsageError."""

    @abstractmethod
    def build(self, config: Any, processor: Any, options: LoadOptions) -> Any:
        """The pre-trained model, frozen, with newly initialised parts where it has any. Raises UsageError."""

    @abstractmethod
    def build_without_weights(self, config: Any, processor: Any) -> Any:
        """The model on the meta device, unquantised: shapes alone. Raises UsageError."""

    @abstractmethod
    def load(self, folder: Path, options: LoadOptions, *, quantization: LoadedQuantization = "as_trained", trainable: bool = False) -> Any:
        """The model of a checkpoint. Raises UsageError when the folder is damaged, or its base model cannot be loaded or is another one.

        Args:
            folder: checkpoint folder, or a whole model of the family.
            options: how weights are loaded.
            quantization: of the language model; `as_trained` takes the checkpoint's setting (a whole model: none).
            trainable: with trainable parameters in fp32, for a run that resumes, which has checked the files; otherwise frozen and in
                eval mode.
        """

    def load_pretrained(self, where: str, settings: Mapping[str, Any], options: LoadOptions) -> tuple[Any, SampleProcessor]:
        """A published model, frozen and in eval mode, and its processor, to compare with. Raises UsageError.

        Only families with a system kind of their own in `eval.systems` (qwen_vl, blip2) have it; no other one is asked.

        Args:
            where: prefix of the settings' names in messages.
            settings: of the system in `eval.systems`, by name.
            options: dtype and device.
        """
        raise NotImplementedError

    @abstractmethod
    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write trained weights and settings. Call `checkpoint_manifest.write_manifest` once all other files are written too.

        state: full state dict of the model, where its parameters are sharded (FSDP, ZeRO-3).
        """

    @abstractmethod
    def settings(self, folder: Path) -> FamilyConfig:
        """The model settings of a checkpoint. Raises UsageError."""

    @abstractmethod
    def configure_trainable(self, model: Any, config: Any, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]) -> Any:
        """Make the groups in `train` trainable, in fp32, and freeze everything else; LoRA is added when first needed.

        run_groups: groups of all stages of the run. Returns the model, wrapped by PEFT if it has LoRA. Raises UsageError.
        """

    def fuse(self, model: Any) -> None:  # noqa: B027
        """Replace modules by fused ones, where the family has any; only speed and memory change."""

    def limit_logits(self, model: Any, gib: float) -> None:  # noqa: B027
        """Limit the memory of the logits and their gradients, where the family can."""

    def collator(self, processor: Any, collate: Collate) -> Collate:
        """The collator of the family's batches, from one that pads or packs."""
        del processor
        return collate

    @abstractmethod
    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """Cross entropy summed over the supervised tokens of a batch, divided by `num_items`.

        model: as it is trained, possibly wrapped (DDP, FSDP); its forward pass must be called.
        """

    @abstractmethod
    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        """Merge a checkpoint's adapters and write a whole model to a new folder; returns warnings to print.

        Args:
            folder: checkpoint folder.
            out: new or empty folder.
            export_format: merged (what the family loads), or llava.
            dtype: of the exported weights.
            data_report: table of the training data for the model card.

        Raises UsageError when the family has no such format, or `out` is not empty.
        """

    @abstractmethod
    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """FLOPs of a training step. features_cached: the vision encoder does not run."""


def family(name: str) -> Family:
    """The family of this name."""
    found: Family = import_module(f"model.{name}.family").FAMILY
    return found


def family_of(folder: Path) -> str:
    """The name of the family of a checkpoint or a whole model. Raises UsageError when the folder holds no model of any family."""
    raw = read_model_config(folder)
    settings, model_type = raw.get("settings"), raw.get("model_type")
    if isinstance(settings, dict) and "family" in settings:
        return str(settings["family"])
    if model_type not in MODEL_TYPES:
        raise UsageError(f"{folder}: not a Tessera checkpoint but a {model_type} model")
    return MODEL_TYPES[model_type]


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder with a model. Raises UsageError when it has none that can be read."""
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder}: not a checkpoint (it has no config.json)")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a model's config ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: expected the config of a model, found {type(raw).__name__}")
    return raw
