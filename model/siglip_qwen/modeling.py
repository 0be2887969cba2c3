"""The vision-language model: a frozen SigLIP, a projector and a causal Qwen, in the LLaVA key layout.

In: token ids with one placeholder a patch token, pixels of the pictures in order of appearance. Out: a loss, or logits.
B rows, T tokens, N pictures, P tokens a picture, D width of the language model.
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from errors import TesseraError
from model.kernels.chunked_cross_entropy import chunked_cross_entropy, positions_per_chunk
from model.kernels.varlen_attention import packed_attention_kwargs
from model.siglip_qwen.connector import Connector
from model.siglip_qwen.image_tokens import find_image_tokens, find_supervised_positions
from model.siglip_qwen.sparse_last_layer import sparse_last_layer_kwargs
from renamed_keys import with_new_keys
from visual import siglip


class ImageTokenMismatchError(TesseraError):
    """Placeholders in the text and features of the pictures differ in number."""


class VisionLanguageConfig(PreTrainedConfig):
    """Configs of both parts and how they are joined.

    settings: the ModelConfig that the model was built from, as plain values; a checkpoint is rebuilt from it.
    language_weights: the language model itself was trained, so a checkpoint holds it.
    """

    model_type = "tessera"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": SiglipVisionConfig, "text_config": AutoConfig}
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 0
    vision_feature_layer: siglip.FeatureLayer = -2
    drop_first_patch: bool = False
    pool: int = 1
    tie_word_embeddings: bool = False
    settings: dict[str, Any] | None = None
    language_weights: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = with_new_keys("model", kwargs)
        self.vision_feature_layer = kwargs.pop("vision_feature_layer", self.vision_feature_layer)
        self.settings = with_new_keys("model", self.settings)
        if isinstance(self.vision_config, dict):
            self.vision_config = SiglipVisionConfig(**self.vision_config)
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        if self.text_config is not None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)


class VisionLanguageBackbone(PreTrainedModel):
    """The three parts; holds no logic of its own."""

    config_class = VisionLanguageConfig
    config: VisionLanguageConfig
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: VisionLanguageConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = Connector(config.vision_config.hidden_size, config.text_config.hidden_size, config.pool)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)


class VisionLanguageModel(PreTrainedModel, GenerationMixin):
    """Its state dict has the keys of LlavaForConditionalGeneration. `model.build` makes one of pre-trained parts."""

    config_class = VisionLanguageConfig
    config: VisionLanguageConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    logits_memory_gib: float | None = None
    """Most memory for the scores of supervised positions; beyond it the loss is computed in chunks (see model.loss)."""
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VisionLanguageConfig):
        super().__init__(config)
        self.model = VisionLanguageBackbone(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        # The Trainer counts supervised tokens of a step over labels[:, 1:] for this kind of loss, which is what `_loss` sums.
        self.loss_type = "ForCausalLM"

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """The vision tower stays in eval mode."""
        super().train(mode)
        self.model.vision_tower.eval()
        return self

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of the frozen trunk, before the projector: pixels [N, 3, H, W] -> [N, patches, vision width].

        They depend on nothing that is trained, so they may be kept and passed as `image_features`.
        """
        return self._encoder(pixel_values)

    @property
    def _encoder(self) -> siglip.VisionEncoder:
        return siglip.VisionEncoder(self.model.vision_tower, self.config.vision_feature_layer, self.config.drop_first_patch)

    def project(self, image_features: torch.Tensor) -> torch.Tensor:
        """Trunk features [N, patches, vision width] -> word embeddings [N, P, D]."""
        projected: torch.Tensor = self.model.multi_modal_projector(image_features)
        return projected

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        image_features: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_length: int | None = None,
        sample_ids: list[str] | None = None,
        image_positions: torch.Tensor | None = None,
        supervised_positions: torch.Tensor | None = None,
        padded_right: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, or with `labels` the loss alone.

        input_ids: [B, T]; pixel_values: [N, 3, H, W] in order of appearance over rows, or in their place image_features
        (`encode_images`) or mm_encoder_outputs {"image": object with pooler_output [N, P, D]} (`project`).
        labels: [B, T], not shifted, -100 where nothing is supervised. The vocabulary product is made at supervised positions
        alone, and no logits are returned. The loss is the sum of cross entropies over num_items_in_batch, else their mean.
        logits_to_keep: the last so many positions, places, or a boolean mask [B, T] (logits are then [kept, vocabulary]).
        cu_seqlens, max_length: packed rows (see model.attention); position_ids must restart with every sample.
        sample_ids: names for error messages, one a row, or one a segment of packed rows.
        image_positions, supervised_positions: from model.positions, found on the host; without them a device is asked for
        them, and the host waits for it.
        padded_right: attention_mask [B, T] leaves out nothing but places behind each row's last token. Such places are seen by
        none before them, so a loss needs no mask.
        Raises PlaceholderError when the pictures do not fill the placeholders.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is expected")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        image_embeds = self._image_embeds(pixel_values, image_features, mm_encoder_outputs)
        zero_vision_loss = (
            self._zero_vision_loss(inputs_embeds.device, image_features) if labels is not None and image_embeds is None else None
        )
        if input_ids is not None and (image_embeds is not None or past_key_values is None or past_key_values.get_seq_length() == 0):
            inputs_embeds = self._insert_image_embeds(input_ids, inputs_embeds, image_embeds, image_positions, cu_seqlens, sample_ids)
        elif image_embeds is not None:
            raise ValueError("pictures need input_ids: with inputs_embeds they are expected to be inserted already")
        if labels is not None and padded_right:
            attention_mask = None
        arguments = {"attention_mask": attention_mask, "use_cache": False if labels is not None else use_cache}
        if labels is not None:
            supervised_positions = find_supervised_positions(labels) if supervised_positions is None else supervised_positions
            supervised_positions = supervised_positions.to(inputs_embeds.device)
            arguments |= sparse_last_layer_kwargs(self.model.language_model, supervised_positions)
        if cu_seqlens is not None:
            if attention_mask is not None or position_ids is None or past_key_values is not None:
                raise ValueError("packed rows take position_ids that restart, no attention_mask and no past_key_values")
            arguments |= packed_attention_kwargs(self.model.language_model, inputs_embeds, cu_seqlens, max_length)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds, position_ids=position_ids, past_key_values=past_key_values, **arguments, **kwargs
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and supervised_positions is not None:
            loss = self._loss(hidden_states, labels, supervised_positions, num_items_in_batch)
            if zero_vision_loss is not None:
                loss = loss + zero_vision_loss
            return CausalLMOutputWithPast(loss=loss, hidden_states=outputs.hidden_states)
        return CausalLMOutputWithPast(
            logits=self.lm_head(_select_hidden_states(hidden_states, logits_to_keep)),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _image_embeds(
        self, pixel_values: torch.Tensor | None, image_features: torch.Tensor | None, mm_encoder_outputs: dict[str, Any] | None
    ) -> torch.Tensor | None:
        """Word embeddings [N, P, D] of the pictures in whichever form they came; None when there are none."""
        encoded = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (pixel_values, image_features, encoded)) > 1:
            raise ValueError("pictures come as one of pixel_values, image_features and mm_encoder_outputs")
        if encoded is not None:
            tokens = encoded.pooler_output
            return tokens if isinstance(tokens, torch.Tensor) else torch.stack(list(tokens))
        if pixel_values is not None and len(pixel_values):
            image_features = self.encode_images(pixel_values)
        if image_features is None or not len(image_features):
            return None
        return self.project(image_features)

    def _insert_image_embeds(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor,
        image_embeds: torch.Tensor | None,
        positions: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        sample_ids: list[str] | None,
    ) -> torch.Tensor:
        """Put picture tokens [N, P, D] where the placeholders stand, one behind the other. [B, T, D] -> [B, T, D]."""
        if positions is None:
            positions = find_image_tokens(input_ids, self.config.image_token_id)
        if len(positions) != (0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]):
            raise ImageTokenMismatchError(_mismatch(input_ids == self.config.image_token_id, image_embeds, cu_seqlens, sample_ids))
        if image_embeds is None:
            return inputs_embeds
        flat_embeds = inputs_embeds.flatten(0, 1)
        tokens = image_embeds.flatten(0, 1).to(flat_embeds.device, flat_embeds.dtype)
        return flat_embeds.index_copy(0, positions.to(flat_embeds.device), tokens).view_as(inputs_embeds)

    def _loss(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Cross entropy of the next token at positions [S]. hidden: [B, T, D], or [S, D] there; labels: [B, T] -> scalar, fp32."""
        positions = positions.to(hidden_states.device)
        targets = labels.to(hidden_states.device).flatten().index_select(0, positions + 1)
        states = hidden_states if hidden_states.ndim == 2 else hidden_states.flatten(0, 1).index_select(0, positions)
        limit = self.logits_memory_gib
        chunk_size = None if limit is None else positions_per_chunk(limit, self.config.text_config.vocab_size)
        total = chunked_cross_entropy(self.lm_head, states, targets, chunk_size)
        if num_items_in_batch is None:
            num_items_in_batch = max(len(positions), 1)
        # A single number may stay on the host: the division takes it along without waiting.
        return total / num_items_in_batch

    def _zero_vision_loss(self, device: torch.device, image_features: torch.Tensor | None) -> torch.Tensor:
        """Zero, with zero gradients, from an empty picture.

        Where several processes train, each must run the trunk and the projector, also one whose batch has no picture, and at
        the same point: weights that are shared out (FSDP, ZeRO-3) are gathered layer by layer by all of them together, and
        DDP waits for every gradient. Where features are given, even of no picture, no process runs the trunk.
        """
        side = self.config.vision_config.image_size
        if image_features is None:
            image_features = self.encode_images(torch.zeros(1, 3, side, side, device=device))
        else:
            image_features = image_features.new_zeros(1, *image_features.shape[1:])
        return 0 * self.project(image_features).float().sum()

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Encode the pictures once and repeat them sample by sample: A B, A B for two beams of a sample with A and B."""
        given = [model_kwargs.pop(key, None) for key in ("pixel_values", "image_features", "mm_encoder_outputs")]
        image_embeds, repeated = self._image_embeds(*given), None
        if image_embeds is not None and input_ids is not None:
            image_token_mask = input_ids == self.config.image_token_id
            counts = (image_token_mask.sum(-1) // image_embeds.shape[1]).tolist()
            if sum(counts) != len(image_embeds):
                raise ImageTokenMismatchError(_mismatch(image_token_mask, image_embeds, None, None))
            repeated = torch.cat([group for group in image_embeds.split(counts) for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        if repeated is not None:
            model_kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=repeated)}
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any) -> dict[str, Any]:
        """Pictures go in with the prompt only (or every time, where there is no cache)."""
        image_embeds = kwargs.pop("mm_encoder_outputs", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["mm_encoder_outputs"] = image_embeds
        return inputs


def _select_hidden_states(hidden_states: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """The hidden states whose logits are wanted."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    return hidden_states[positions] if positions.dtype == torch.bool else hidden_states[:, positions]


def _mismatch(
    image_token_mask: torch.Tensor, image_embeds: torch.Tensor | None, cu_seqlens: torch.Tensor | None, sample_ids: list[str] | None
) -> str:
    """Say in which sample placeholders and pictures part ways."""
    if cu_seqlens is None:
        counts = image_token_mask.sum(-1).tolist()
    else:
        segments = cu_seqlens.tolist()
        counts = [int(image_token_mask.flatten()[start:end].sum()) for start, end in pairwise(segments)]
    names = [*(sample_ids or []), *(f"in row {i}" for i in range(len(sample_ids or []), len(counts)))]
    given, size = (0, 1) if image_embeds is None else image_embeds.shape[:2]
    left, total = given * size, f"{sum(counts)} placeholders in the batch for {given} pictures of {size} tokens"
    for name, count in zip(names, counts, strict=True):
        if count % size or count > left:
            return f"sample {name}: {count} placeholders do not match its pictures ({total})"
        left -= count
    return f"sample {names[-1]} or one before it: {left} picture tokens have no placeholder ({total})"
