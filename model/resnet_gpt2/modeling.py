"""The early system: ResNet's features beside GPT-2's last hidden states, joined before GPT-2's head.

Shapes: B samples (= images), P positions of the image (1 for the mean), C channels of ResNet, T tokens, D width of GPT-2, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from errors import UsageError
from model.family import LoadOptions
from model.param_groups import GroupPaths
from model.resnet_gpt2.config import ResnetGpt2Config
from visual.pretrained_model import load_model, read_config

NEVER_TRAINED = ("language.transformer.wte.", "language.transformer.wpe.", "language.transformer.h.0.ln_1.weight", "language.lm_head.")
"""GPT-2's first three parameter tensors, and its head, which is the first of them: what the early system's code froze."""

POSITION_BASE, POSITION_SCALE = 100.0, 0.5
"""Of the positions that are added to the features of a grid: attention alone does not know where a feature is."""

GROUP_PATHS: GroupPaths = {
    None: NEVER_TRAINED,
    "language": ("language.",),
    "connector": ("connector.",),
    "vision": ("vision.",),
}


class ImageFusion(nn.Module):
    """Lets every token attend to the image and joins both. channels: C; width: D; config: sizes."""

    def __init__(self, channels: int, width: int, config: Any):
        super().__init__()
        hidden = config.hidden_size
        self.projection = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(config.hidden_dropout_prob), nn.Linear(hidden, width)
        )
        self.attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.join = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
        self.norm = nn.LayerNorm(width)

    def forward(self, text_btd: torch.Tensor, image_bpd: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] for GPT-2's head. image_bpd: what `projection` made of the features."""
        attended, _ = self.attention(text_btd, image_bpd, image_bpd, need_weights=False)
        joined: torch.Tensor = self.norm(self.join(torch.cat([text_btd, attended], dim=-1)))
        return joined


def grid_positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """Sines and cosines [rows * columns, width] of the row in the first half of the channels, of the column in the second (Vaswani et al.
    2017, arXiv:1706.03762, with wavelengths up to 2 pi POSITION_BASE)."""
    frequencies = POSITION_BASE ** -(torch.arange(width // 4) / (width // 4))
    row, column = (torch.arange(size)[:, None] * frequencies for size in (rows, columns))
    row_part = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(rows, columns, -1)
    column_part = torch.cat([column.sin(), column.cos()], dim=1)[None].expand(rows, columns, -1)
    positions = torch.cat([row_part, column_part], dim=2).flatten(0, 1)
    return nn.functional.pad(positions, (0, width - positions.shape[1]))


class ImageFeatures(DynamicLayer):
    """Projected image features [B, P, D] as one more layer of the KV cache, so that they stay with their question."""

    def __init__(self, features: torch.Tensor):
        super().__init__()
        self.lazy_initialization(features[:, None], features[:, None])
        self.keys = self.values = features[:, None]


class ResnetGpt2(PreTrainedModel):
    """ResNet, GPT-2 and their fusion."""

    config_class = PreTrainedConfig

    def __init__(self, vision: PreTrainedModel, language: PreTrainedModel, config: ResnetGpt2Config):
        super().__init__(PreTrainedConfig())
        self.vision, self.language = vision, language
        width = language.config.n_embd
        if width % config.connector.num_attention_heads:
            raise UsageError(f"model.connector.num_attention_heads: {config.connector.num_attention_heads} does not divide {width}")
        self.connector = ImageFusion(vision.config.hidden_sizes[-1], width, config.connector)
        self.settings, self.group_paths = config, GROUP_PATHS

    def get_input_embeddings(self) -> nn.Module:
        embedding: nn.Module = self.language.get_input_embeddings()
        return embedding

    def train(self, mode: bool = True) -> "ResnetGpt2":
        """Training mode for all but ResNet: its statistics stay those of its pre-training."""
        super().train(mode)
        self.vision.eval()
        return self

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected features [B, P, D]."""
        maps = self.vision(pixel_values).last_hidden_state
        features = maps.mean((2, 3), keepdim=True) if self.settings.features == "vector" else maps
        projected: torch.Tensor = self.connector.projection(features.flatten(2).transpose(1, 2))
        if self.settings.features == "vector":
            return projected
        rows, columns = features.shape[2:]
        return projected + POSITION_SCALE * grid_positions(rows, columns, projected.shape[2]).to(projected)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the last `logits_to_keep` positions (0: all), or [S, V] of those of a mask [B, T].

        With a cache, that is in generation, the image is left out where the settings say so.
        """
        hidden = self.language.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        if past_key_values is None or self.settings.generation == "fused":
            hidden = self.connector(hidden, self._features(pixel_values, past_key_values))
        kept = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[logits_to_keep]
        return CausalLMOutputWithPast(logits=self.language.lm_head(kept), past_key_values=past_key_values)

    def _features(self, pixel_values: torch.Tensor | None, cache: Any) -> torch.Tensor:
        """The features of the images, or those that the cache holds since the prompt."""
        if pixel_values is None:
            kept: torch.Tensor = cache.layers[self.language.config.n_layer].keys[:, 0]
            return kept
        features = self.image_features(pixel_values)
        if cache is not None:
            cache.layers.append(ImageFeatures(features))
        return features


def read_configs(config: ResnetGpt2Config) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """The configs of ResNet and GPT-2. Raises UsageError when one cannot be read or is of another kind."""
    vision = read_config("model.vision", config.vision, ("resnet",), "a resnet")
    return vision, read_config("model.language", config.language, ("gpt2",), "a gpt2")


def build(config: ResnetGpt2Config, options: LoadOptions) -> ResnetGpt2:
    """Pre-trained ResNet and GPT-2 with a newly initialised fusion, frozen and in eval mode, in fp32.

    Raises UsageError when one cannot be loaded, is of another kind, or lacks weights.
    """
    read_configs(config)
    vision, language = (
        load_model(key, name, auto_class, may_be_missing=lambda weight: "pooler" in weight, dtype=torch.float32)
        for key, name, auto_class in (("model.vision", config.vision, AutoModel), ("model.language", config.language, AutoModelForCausalLM))
    )
    model: Any = ResnetGpt2(vision, language, config)
    frozen: ResnetGpt2 = model.to(options.device).requires_grad_(False).eval()
    return frozen


def build_without_weights(config: ResnetGpt2Config) -> ResnetGpt2:
    """The model on the meta device: shapes without weights."""
    vision, language = read_configs(config)
    with torch.device("meta"):
        model: Any = ResnetGpt2(AutoModel.from_config(vision), AutoModelForCausalLM.from_config(language), config)
    frozen: ResnetGpt2 = model.requires_grad_(False).eval()
    return frozen
