"""Models of the LLaVA layout as a family."""

from typing import Any, ClassVar

from dataset.sample import Prompts
from model.llava.config import LlavaConfig
from model.llava.modeling import LLAVA
from model.llava.processor import LlavaProcessor
from model.param_groups import unwrapped
from model.step_flops import StepFlops, count_step_flops
from model.stock.stock_family import WholeModelFamily
from model.stock.stock_model import StockModel


class LlavaFamily(WholeModelFamily):
    """Implements model.family.Family."""

    name: ClassVar[str] = "llava"
    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig
    processor_class: ClassVar[type[LlavaProcessor]] = LlavaProcessor
    stock: ClassVar[StockModel] = LLAVA
    image_modules: ClassVar[tuple[str, ...]] = ("vision_tower", "multi_modal_projector")

    def processor(self, config: LlavaConfig, prompts: Prompts | None = None) -> LlavaProcessor:
        return LlavaProcessor.from_pretrained(
            "model.path", config.path, max_length=config.max_length, system_prompt=config.system_prompt, prompts=prompts or {}
        )

    def published_processor(self, key: str, path: str) -> LlavaProcessor:
        return LlavaProcessor.from_pretrained(key, path)

    def connector_modules(self, model: Any) -> list[str]:
        del model
        return ["multi_modal_projector"]

    def step_flops(self, model: Any, features_cached: bool) -> StepFlops:
        """Per image."""
        del features_cached
        config = unwrapped(model).config
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        layer = config.vision_feature_layer
        depth = vision.num_hidden_layers if not isinstance(layer, int) else layer % (vision.num_hidden_layers + 1)
        return count_step_flops(model, patches, depth, patches)


FAMILY = LlavaFamily()
