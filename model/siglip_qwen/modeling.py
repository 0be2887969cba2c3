"""The vision-language model: frozen SigLIP vision encoder -> connector -> causal Qwen (LLaVA-1.5, arXiv:2310.03744).

Image embeddings from the connector replace the embeddings of the image tokens in the prompt. State dict keys are those of
transformers' LlavaForConditionalGeneration.

Shapes: B batch (rows), T tokens per row, D hidden size and V vocabulary size of the language model, S supervised positions,
N images (H x W pixels), P patches per image, C hidden size of the vision encoder, Q image tokens per image (P / pool^2).
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from errors import TesseraError
from model.kernels.chunked_cross_entropy import LanguageModelHead, positions_per_chunk
from model.kernels.varlen_attention import packed_attention_kwargs
from model.siglip_qwen.connector import Connector
from model.siglip_qwen.image_tokens import find_image_tokens, find_supervised_positions
from model.siglip_qwen.module_paths import GROUP_PATHS
from model.siglip_qwen.sparse_last_layer import sparse_last_layer_kwargs
from renamed_keys import with_new_keys
from visual import siglip


class ImageTokenMismatchError(TesseraError):
    """The number of image tokens in the prompt differs from the number of image embeddings."""


class VisionLanguageConfig(PreTrainedConfig):
    """Configs of the vision encoder and the language model, and the fields of SiglipQwenConfig that `forward` reads.

    settings: the whole SiglipQwenConfig as plain values; loading a checkpoint rebuilds the model from it.
    language_weights: the checkpoint contains the language model, trained in full.
    base_folder: path and sha256 of the folder whose whole model is the base, in place of the models that `settings` names."""

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
    base_folder: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_feature_layer = kwargs.pop("feature_layer", self.vision_feature_layer)  # schema version 1
        self.settings = with_new_keys("model", self.settings)
        if isinstance(self.vision_config, dict):
            self.vision_config = SiglipVisionConfig(**self.vision_config)
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        if self.text_config is not None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)


class VisionLanguageBackbone(PreTrainedModel):
    """Vision tower, connector (`multi_modal_projector`, LLaVA's key) and language model. The forward pass is in VisionLanguageModel."""

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
    """SigLIP, connector and Qwen with a language modelling head. `assembly.build` loads one from pre-trained models."""

    config_class = VisionLanguageConfig
    config: VisionLanguageConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    logits_memory_gib: float | None = None
    """Memory limit for the logits [S, V] in GiB; above it the loss is computed in chunks. None: no limit."""
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    group_paths = GROUP_PATHS
    _supports_sdpa = True
    _supports_flash_attn = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VisionLanguageConfig):
        super().__init__(config)
        self.model = VisionLanguageBackbone(config)
        self.lm_head = LanguageModelHead(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()
        # With this type the Trainer counts num_items_in_batch over labels[:, 1:], the targets that `_loss` sums over.
        self.loss_type = "ForCausalLM"

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """Set training mode; the frozen vision tower always stays in eval mode."""
        super().train(mode)
        self.model.vision_tower.eval()
        return self

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features of the frozen vision encoder: pixels [N, 3, H, W] -> [N, P, C].

        They do not depend on any trained weight, so they can be cached and passed to `forward` as `image_features`.
        """
        return self._encoder(pixel_values)

    @property
    def _encoder(self) -> siglip.VisionEncoder:
        return siglip.VisionEncoder(self.model.vision_tower, self.config.vision_feature_layer, self.config.drop_first_patch)

    def project(self, image_features: torch.Tensor) -> torch.Tensor:
        """Apply the connector: patch features [N, P, C] -> image embeddings [N, Q, D]."""
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
        """Logits [B, T, V]; with `labels` the fp32 scalar loss alone, for which `lm_head` runs at supervised positions only.

        Images are passed as one of pixel_values, image_features and mm_encoder_outputs, in order of appearance over the rows.

        Args:
            input_ids: [B, T], with Q image tokens per image; exactly one of input_ids and inputs_embeds is given.
            attention_mask: [B, T], 0 at padding.
            position_ids: [B, T]; in packed rows they restart at 0 with every sample.
            past_key_values: KV cache of the tokens before input_ids.
            inputs_embeds: word embeddings [B, T, D] with image embeddings already inserted.
            pixel_values: [N, 3, H, W].
            labels: [B, T], not shifted; -100 (ignore index) where a token is not supervised.
            logits_to_keep: the last n positions (0: all), an int64 index into T, or a boolean mask [B, T] (logits [kept, V]).
            use_cache: return a KV cache; always off when labels are given.
            mm_encoder_outputs: {"image": object with pooler_output [N, Q, D]}, the output of `project`.
            num_items_in_batch: divisor of the summed cross entropy; None takes the mean over the supervised positions.
            image_features: [N, P, C], the output of `encode_images`.
            cu_seqlens: int32 [segments + 1], borders of the packed samples (see kernels.varlen_attention).
            max_length: tokens in the longest packed sample.
            sample_ids: names for error messages, one per row, or one per segment of packed rows.
            image_positions: int64 [N * Q], image tokens in the flattened batch; None computes them, which waits for the device.
            supervised_positions: int64 [S], positions in the flattened batch whose next token is supervised; None: the same.
            padded_right: all padding is on the right, where causal attention never reads it: the loss needs no mask.

        Raises ImageTokenMismatchError when image tokens and image embeddings differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is expected")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        image_embeds = self._image_embeds(pixel_values, image_features, mm_encoder_outputs)
        if input_ids is not None and (image_embeds is not None or past_key_values is None or past_key_values.get_seq_length() == 0):
            inputs_embeds = self._insert_image_embeds(input_ids, inputs_embeds, image_embeds, image_positions, cu_seqlens, sample_ids)
        elif image_embeds is not None:
            raise ValueError("images need input_ids; inputs_embeds must already contain the image embeddings")
        if labels is not None and image_embeds is None:
            inputs_embeds = inputs_embeds + self._zero_through_vision(inputs_embeds, image_features)
        if labels is not None and padded_right:
            attention_mask = None
        arguments = {"attention_mask": attention_mask, "use_cache": False if labels is not None else use_cache}
        if labels is not None:
            supervised_positions = find_supervised_positions(labels) if supervised_positions is None else supervised_positions
            supervised_positions = supervised_positions.to(inputs_embeds.device)
            arguments |= sparse_last_layer_kwargs(self.model.language_model, supervised_positions)
        if cu_seqlens is not None:
            if attention_mask is not None or position_ids is None or past_key_values is not None:
                raise ValueError("packed rows need position_ids that restart with every sample, no attention_mask and no past_key_values")
            arguments |= packed_attention_kwargs(self.model.language_model, inputs_embeds, cu_seqlens, max_length)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds, position_ids=position_ids, past_key_values=past_key_values, **arguments, **kwargs
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and supervised_positions is not None:
            loss = self._loss(hidden_states, labels, supervised_positions, num_items_in_batch)
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
        """Image embeddings [N, Q, D] from pixels, features or embeddings; None when the batch has no image."""
        encoded = (mm_encoder_outputs or {}).get("image")
        if sum(images is not None for images in (pixel_values, image_features, encoded)) > 1:
            raise ValueError("images must be passed as one of pixel_values, image_features and mm_encoder_outputs")
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
        """Replace the embeddings of image tokens by image_embeds [N, Q, D]: [B, T, D] -> [B, T, D]. positions: int64 [N * Q]."""
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
        """Next-token cross entropy, summed and divided by num_items_in_batch (default S) -> fp32 scalar.

        hidden_states: [B, T, D], or [S, D] from a sparse last layer; positions: int64 [S], the target of i is labels.flatten()[i + 1].
        """
        positions = positions.to(hidden_states.device)
        targets = labels.to(hidden_states.device).flatten().index_select(0, positions + 1)
        states = hidden_states if hidden_states.ndim == 2 else hidden_states.flatten(0, 1).index_select(0, positions)
        chunk_size = self.logits_memory_gib and positions_per_chunk(self.logits_memory_gib, self.config.text_config.vocab_size)
        total: torch.Tensor = self.lm_head(states, targets, chunk_size)
        if num_items_in_batch is None:
            num_items_in_batch = max(len(positions), 1)
        # num_items_in_batch may be a one-element CPU tensor: dividing by it needs no synchronisation.
        return total / num_items_in_batch

    def _zero_through_vision(self, inputs_embeds: torch.Tensor, image_features: torch.Tensor | None) -> torch.Tensor:
        """A zero that depends on the connector, from a blank image: added to the inputs of a batch without images.

        Every rank must run vision encoder and connector at the same point, forward and backward: FSDP and ZeRO-3 gather weights and
        reduce gradients module by module, and DDP waits for every gradient. FSDP2 reduces a layer's gradients in its turn only when
        its input requires a gradient, so the zero is added to the inputs, where other ranks have their image embeddings. When
        image_features are passed, even empty ones, no rank runs the encoder.
        """
        side = self.config.vision_config.image_size
        if image_features is None:
            image_features = self.encode_images(torch.zeros(1, 3, side, side, device=inputs_embeds.device))
        else:
            image_features = image_features.new_zeros(1, *image_features.shape[1:])
        return (0 * self.project(image_features).float().sum()).to(inputs_embeds.dtype)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Encode the images once and repeat them per sample: a sample with images A and B and two beams gives A B A B."""
        image_inputs = [model_kwargs.pop(key, None) for key in ("pixel_values", "image_features", "mm_encoder_outputs")]
        image_embeds, repeated = self._image_embeds(*image_inputs), None
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
        """Pass images during prefill only; without a KV cache, at every step."""
        image_embeds = kwargs.pop("mm_encoder_outputs", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["mm_encoder_outputs"] = image_embeds
        return inputs


def _select_hidden_states(hidden_states: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, D] at the requested positions: the last n (0: all), an index into T, or a mask [B, T] -> [kept, D]."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    return hidden_states[positions] if positions.dtype == torch.bool else hidden_states[:, positions]


def _mismatch(
    image_token_mask: torch.Tensor, image_embeds: torch.Tensor | None, cu_seqlens: torch.Tensor | None, sample_ids: list[str] | None
) -> str:
    """Error message naming the first sample whose image tokens do not match its images."""
    if cu_seqlens is None:
        counts = image_token_mask.sum(-1).tolist()
    else:
        segments = cu_seqlens.tolist()
        counts = [int(image_token_mask.flatten()[start:end].sum()) for start, end in pairwise(segments)]
    names = [*(sample_ids or []), *(f"in row {i}" for i in range(len(sample_ids or []), len(counts)))]
    num_images, size = (0, 1) if image_embeds is None else image_embeds.shape[:2]
    remaining, total = num_images * size, f"{sum(counts)} image tokens in the batch for {num_images} images of {size} tokens"
    for name, count in zip(names, counts, strict=True):
        if count % size or count > remaining:
            return f"sample {name}: {count} image tokens do not match its images ({total})"
        remaining -= count
    return f"sample {names[-1]} or an earlier one: {remaining} image embeddings have no image token ({total})"
