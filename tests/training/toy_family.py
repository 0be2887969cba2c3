"""A family as CONTRIBUTING describes one, as small as it can be: a causal language model that is told an image's mean color.

It stands in no table of the product: trainer, data loaders and answering know it by the protocol alone.
"""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, Qwen3ForCausalLM

from atomic_io import write_json
from config_schema import section
from dataset.loading.encoded_sample import IGNORE_INDEX
from errors import UsageError
from model.family import Family, LoadOptions, read_model_config
from model.family_config import FamilyConfig, LoraConfig, ParamGroup
from model.param_groups import param_group_of, set_trainable
from model.processors.chat_processor import ChatProcessor, load_chat_tokenizer
from model.processors.sample_processor import ImageSize, read_processor_settings
from model.step_flops import StepFlops, count_step_flops


@section
class ToyConfig(FamilyConfig):
    """A language model and a color."""

    base_models: ClassVar[tuple[str, ...]] = ("path",)
    groups: ClassVar[tuple[ParamGroup, ...]] = ("connector", "language")

    family: Literal["toy"] = "toy"
    """The family."""
    path: str
    """Language model."""
    lora: LoraConfig | None = None
    """It has none."""


class ToyModel(Qwen3ForCausalLM):
    """Puts the color of an image where its token stands."""

    group_paths: ClassVar[Any] = {"connector": ("color.",), "language": ("model.", "lm_head.")}

    def __init__(self, config: Any):
        super().__init__(config)
        self.color = nn.Linear(3, config.hidden_size)

    def forward(self, input_ids: Any = None, pixel_values: Any = None, **inputs: Any) -> Any:
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None and len(pixel_values):
            embeds = embeds.masked_scatter((input_ids == self.config.image_token_id)[..., None], self.color(pixel_values).to(embeds.dtype))
        return super().forward(inputs_embeds=embeds, **inputs)


class ToyProcessor(ChatProcessor):
    """An image is one token."""

    def __init__(self, path: str, max_length: int, **settings: Any):
        super().__init__(load_chat_tokenizer("model.path", path), None, image_token="<|image_pad|>", max_length=max_length, **settings)

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        del sizes
        return [1] * num_images

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        colors = [np.asarray(image, dtype=np.float32).mean((0, 1)) / 255 for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(colors)) if colors else torch.empty(0, 3)}

    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def blank_images(self, num_images: int, sizes: Sequence[ImageSize]) -> list[Image.Image]:
        del sizes
        return [Image.new("RGB", (1, 1))] * num_images

    def readable(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.save_settings(folder)


class ToyFamily(Family):
    """The toy."""

    def processor(self, config: ToyConfig, prompts: Any = None) -> ToyProcessor:
        return ToyProcessor(config.path, config.max_length, system_prompt=config.system_prompt, prompts=prompts)

    def load_processor(self, folder: Path) -> ToyProcessor:
        return ToyProcessor(str(folder), **read_processor_settings(folder))

    def build(self, config: ToyConfig, processor: ToyProcessor, options: LoadOptions) -> ToyModel:
        model = ToyModel.from_pretrained(config.path, dtype=options.dtype or torch.float32)
        model.config.image_token_id = processor.image_token_id
        model.settings, model.trained_groups = config, ()
        frozen: ToyModel = model.requires_grad_(False).eval()
        return frozen

    def build_without_weights(self, config: ToyConfig, processor: ToyProcessor) -> ToyModel:
        del processor
        with torch.device("meta"):
            model = ToyModel(AutoConfig.from_pretrained(config.path))
        model.trained_groups = ()
        frozen: ToyModel = model.requires_grad_(False)
        return frozen

    def load(self, folder: Path, options: LoadOptions, *, quantization: Any = "as_trained", trainable: bool = False) -> ToyModel:
        if quantization not in ("as_trained", "none"):
            raise UsageError("quantization: the toy has none")
        model = self.build(self.settings(folder), self.load_processor(folder), options)
        model.trained_groups = tuple(read_model_config(folder)["trained_groups"])
        model.load_state_dict(load_file(folder / "toy.safetensors"), strict=False)
        if trainable:
            set_trainable(model, model.trained_groups)
        return model

    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        del state
        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            n: p.detach().clone() for n, p in model.named_parameters() if param_group_of(n, model.group_paths) in model.trained_groups
        }
        save_file(trained, folder / "toy.safetensors")
        settings = json.loads(json.dumps(dataclasses.asdict(model.settings)))
        write_json(folder / "config.json", {"model_type": "toy", "settings": settings, "trained_groups": list(model.trained_groups)})

    def settings(self, folder: Path) -> ToyConfig:
        return ToyConfig(**read_model_config(folder)["settings"])

    def configure_trainable(self, model: Any, config: Any, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]) -> Any:
        del config, run_groups
        model.trained_groups = tuple(dict.fromkeys([*model.trained_groups, *train]))
        set_trainable(model, train)
        return model

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        names = ("input_ids", "attention_mask", "pixel_values")
        logits = model(**{name: inputs[name] for name in names}).logits
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum") / num_items

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        raise UsageError(f"--format {export_format}: the toy is not exported ({folder}, {out}, {dtype}, {data_report})")

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        del features_cached
        return count_step_flops(model, 0, 0, 1)


FAMILY = ToyFamily()
