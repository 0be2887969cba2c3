"""Our own model as a family: SigLIP, connector, causal Qwen."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dataset.sample import Prompts
from model.family import Collate, Family, LoadedQuantization, LoadOptions
from model.family_config import ParamGroup
from model.hub import llava_export
from model.hub.llava_export import ExportFormat
from model.kernels.rms_norm import fuse_rms_norms
from model.param_groups import has_adapters
from model.processors.sample_processor import read_processor_settings
from model.siglip_qwen import assembly, checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.batch_layout import LayoutCollator
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.connectors.connector_factory import num_image_tokens
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from model.siglip_qwen.sparse_last_layer import enable_sparse_last_layer
from model.siglip_qwen.tiles_processor import TilesProcessor
from model.step_flops import StepFlops, count_step_flops
from visual.vision_encoder import grid_side, num_layers_for, num_prefix_tokens

if TYPE_CHECKING:
    from peft import PeftModel


class SiglipQwenFamily(Family):
    """Implements model.family.Family."""

    def processor(self, config: SiglipQwenConfig, prompts: Prompts | None = None) -> Processor:
        """Raises UsageError when a tokenizer or image processor cannot be loaded or settings contradict it."""
        settings: dict[str, Any] = {
            "language": config.language,
            "vision": config.vision,
            "tokens_per_image": assembly.tokens_per_image(config),
            "vocab_size": int(assembly.language_config(config.language).vocab_size),
            "image_token": config.image_token,
            "max_length": config.max_length,
            "system_prompt": config.system_prompt,
            "prompts": prompts,
        }
        if config.tiles is None:
            return Processor.from_pretrained(**settings)
        return TilesProcessor.from_pretrained(**settings, max_tiles=config.tiles.max)

    def load_processor(self, folder: Path) -> Processor:
        return (TilesProcessor if "max_tiles" in read_processor_settings(folder) else Processor).load(folder)

    def build(self, config: SiglipQwenConfig, processor: Processor, options: LoadOptions) -> VisionLanguageModel:
        return assembly.build(config, processor.image_token_id, options)

    def build_without_weights(self, config: SiglipQwenConfig, processor: Processor) -> VisionLanguageModel:
        return assembly.build_without_weights(config, processor.image_token_id)

    def load(
        self, folder: Path, options: LoadOptions, *, quantization: LoadedQuantization = "as_trained", trainable: bool = False
    ) -> "VisionLanguageModel | PeftModel":
        return checkpoint.load(folder, options, quantization=quantization, trainable=trainable)

    def save(self, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        checkpoint.save(model, folder, state)

    def settings(self, folder: Path) -> SiglipQwenConfig:
        return checkpoint.settings(folder)

    def configure_trainable(
        self, model: Any, config: SiglipQwenConfig, train: Collection[ParamGroup], run_groups: Collection[ParamGroup]
    ) -> "VisionLanguageModel | PeftModel":
        """The connector is saved whatever the run trains."""
        return configure_trainable(model, config, train, run_groups)

    def fuse(self, model: "VisionLanguageModel | PeftModel") -> None:
        """Replace LoRA layers, RMS norms and the last layer by fused ones with the same weights, where none is sharded over ranks."""
        if has_adapters(model):
            # Imports PEFT, which a model without adapters does not need.
            from model.kernels.fused_lora import fuse_lora

            fuse_lora(model)
        language_model = base_model(model).model.language_model
        fuse_rms_norms(language_model)
        enable_sparse_last_layer(language_model)

    def limit_logits(self, model: Any, gib: float) -> None:
        base_model(model).logits_memory_gib = gib

    def collator(self, processor: Processor, collate: Collate) -> Collate:
        """Adds the layout of the rows."""
        return LayoutCollator(collate, processor.image_token_id)

    def loss(self, model: Any, inputs: dict[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        loss: torch.Tensor = model(**inputs, num_items_in_batch=num_items).loss
        return loss

    def export(self, folder: Path, out: Path, export_format: str, dtype: torch.dtype, data_report: str | None) -> list[str]:
        chosen: ExportFormat = "llava" if export_format == "llava" else "merged"
        return llava_export.export(folder, out, chosen, self.load_processor(folder), dtype=dtype, data_report=data_report)

    def step_flops(self, model: "VisionLanguageModel | PeftModel", features_cached: bool = False) -> StepFlops:
        """`count_step_flops` with the sizes in the model's config."""
        config = base_model(model).config
        side = grid_side(config.vision_config, config.image_side)
        depth = 0 if features_cached else num_layers_for(config.vision_feature_layer, config.vision_config.num_hidden_layers)
        tokens = num_image_tokens(config.connector_config, side, config.drop_first_patch)
        connector = base_model(model).model.multi_modal_projector
        positions = side**2 + num_prefix_tokens(config.vision_config)
        return count_step_flops(model, positions, depth, lambda layer: connector.rows_per_image(layer, side**2, tokens))


FAMILY = SiglipQwenFamily()
