"""Qwen2.5-VL and Qwen3-VL as a family.

Shapes: B samples, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dataset.sample import Prompts
from errors import UsageError
from model.family import Collate, LoadOptions
from model.param_groups import unwrapped
from model.qwen_vl.config import QwenVlConfig
from model.qwen_vl.modeling import QWEN_VL
from model.qwen_vl.processor import QwenVlProcessor
from model.step_flops import PartNames, StepFlops, count_step_flops
from model.stock.stock_family import WholeModelFamily
from model.stock.stock_model import StockModel

PART_NAMES = PartNames(("model.visual.",), (".merger.", ".deepstack_merger_list."))


class QwenVlFamily(WholeModelFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "qwen_vl"
    config_class: ClassVar[type[QwenVlConfig]] = QwenVlConfig
    processor_class: ClassVar[type[QwenVlProcessor]] = QwenVlProcessor
    stock: ClassVar[StockModel] = QWEN_VL
    image_modules: ClassVar[tuple[str, ...]] = (".visual.",)

    def processor(self, config: QwenVlConfig, prompts: Prompts | None = None) -> QwenVlProcessor:
        return QwenVlProcessor.from_pretrained(
            "model.path",
            config.path,
            max_length=config.max_length,
            pixel_limits={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
            system_prompt=config.system_prompt,
            prompts=prompts,
        )

    def published_processor(self, key: str, path: str) -> QwenVlProcessor:
        return QwenVlProcessor.from_pretrained(key, path)

    def load_pretrained(self, where: str, settings: Mapping[str, Any], options: LoadOptions) -> tuple[Any, QwenVlProcessor]:
        """With `max_memory` the model is split over devices, the CPU and offload_folder."""
        key, path = f"{where}path", settings["path"]
        config = QWEN_VL.read_config(key, path)
        if config.model_type != settings["kind"]:
            raise UsageError(f"{key}: {path} is a {config.model_type} model, the system's kind says {settings['kind']}")
        processor = QwenVlProcessor.from_pretrained(key, path)
        split: dict[str, Any] = {}
        if settings["max_memory"] is not None:
            memory = {int(name) if name.isdigit() else name: size for name, size in settings["max_memory"].items()}
            split = {"device_map": "auto", "max_memory": memory, "offload_folder": settings["offload_folder"]}
        return QWEN_VL.load(key, path, settings["quantization"], options, **split), processor

    def connector_modules(self, model: Any) -> list[str]:
        """PEFT takes no ModuleList, so its members are named."""
        return ["merger", *(f"deepstack_merger_list.{i}" for i in range(len(getattr(model.model.visual, "deepstack_merger_list", ()))))]

    def collator(self, processor: QwenVlProcessor, collate: Collate) -> Collate:
        return ImageTypeCollator(collate, processor.image_token_id)

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """Per patch: a row of pixel_values."""
        del features_cached
        merged = unwrapped(model).config.vision_config.spatial_merge_size ** 2
        return count_step_flops(model, 1, 1, 1 / merged, PART_NAMES)


@dataclass(frozen=True)
class ImageTypeCollator:
    """Adds mm_token_type_ids [B, T] to a batch: 1 at image tokens, which multimodal positions are computed from."""

    collate: Collate
    image_token_id: int

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        return {**batch, "mm_token_type_ids": (batch["input_ids"] == self.image_token_id).int()}


FAMILY = QwenVlFamily()
