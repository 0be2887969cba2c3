"""The vision-language model: SigLIP vision encoder -> connector -> causal Qwen (LLaVA-1.5, arXiv:2310.03744).

Image embeddings from the connector replace the embeddings of the image tokens in the prompt. State dict keys are those of
transformers' LlavaForConditionalGeneration.

Shapes: B batch (rows), T tokens per row, D hidden size and V vocabulary size of the language model, S supervised positions,
N images (H x W pixels), P patches per image, C hidden size of the vision encoder, Q image tokens per image (see connectors).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from errors import TesseraError
from model.kernels.chunked_cross_entropy import LanguageModelHead, positions_per_chunk
from model.kernels.varlen_attention import packed_attention_kwargs
from model.param_groups import GroupPaths
from model.siglip_qwen.batch_layout import (
    UNKNOWN_LAYOUT,
    BatchLayout,
    ImageEmbeddings,
    find_image_tokens,
    find_supervised_positions,
    images_of_rows,
)
from model.siglip_qwen.sparse_last_layer import sparse_last_layer_kwargs
from model.siglip_qwen.tiles import Size
from model.siglip_qwen.vision_language_config import VisionLanguageConfig, connector_of
from visual import vision_encoder

CONNECTOR = "model.multi_modal_projector"

VISION_TOWER = "model.vision_tower"

GROUP_PATHS: GroupPaths = {"connector": (CONNECTOR,), "language": ("model.language_model", "lm_head.")}
"""Of a model with a frozen vision encoder."""


class ImageTokenMismatchError(TesseraError):
    """The number of image tokens in the prompt differs from the number of image embeddings."""


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
        self.multi_modal_projector = connector_of(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()


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
    _supports_sdpa = True
    _supports_flash_attn = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VisionLanguageConfig):
        super().__init__(config)
        self.model = VisionLanguageBackbone(config)
        self.lm_head = LanguageModelHead(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()
        # With this type the Trainer counts num_items_in_batch over labels[:, 1:], the targets that the loss is summed over.
        self.loss_type = "ForCausalLM"

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """Set training mode; a frozen vision tower always stays in eval mode."""
        super().train(mode)
        tower = self.model.vision_tower
        tower.train(mode and vision_encoder.is_trained(tower))
        return self

    @property
    def group_paths(self) -> GroupPaths:
        """Parameter groups; with LoRA on the vision encoder, its own weights are in none."""
        settings, config = self.config.settings or {}, self.config
        trained = () if settings.get("vision_lora") else (settings.get("vision_layers", "all"),)
        tower = self.model.vision_tower
        vision = [name for layers in trained for name in vision_encoder.trained_parts(tower, config.vision_feature_layer, layers)]
        # DINO's mask token has a part in pre-training only: DDP would wait for its gradient.
        return {
            None: (f"{VISION_TOWER}.embeddings.mask_token",),
            **GROUP_PATHS,
            "vision": tuple(f"{VISION_TOWER}.{name}." for name in vision),
        }

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features of the vision encoder: pixels [N, 3, H, W] -> [N, P, C].

        Those of a frozen one do not depend on any trained weight, so they can be cached and passed to `forward` as `image_features`.
        """
        features = vision_encoder.encode(self.model.vision_tower, pixel_values, self.config.vision_feature_layer)
        return features[:, 1:] if self.config.drop_first_patch else features

    def project(self, image_features: torch.Tensor, image_sizes: Sequence[Size] = ()) -> ImageEmbeddings:
        """Apply the connector to patch features [N, P, C]; of tiles [R, P, C], with the sizes of the images that they are of."""
        connector = self.model.multi_modal_projector
        if self.config.tiles is not None:
            return ImageEmbeddings(connector(image_features, image_sizes), [self.config.tile_grid.num_tokens(size) for size in image_sizes])
        projected = connector(image_features)
        return ImageEmbeddings(projected.flatten(0, 1), [projected.shape[1]] * len(projected))

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
        image_sizes: torch.Tensor | None = None,
        layout: BatchLayout = UNKNOWN_LAYOUT,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V]; with `labels` the fp32 scalar loss alone, for which `lm_head` runs at supervised positions only.

        Images are passed as one of pixel_values, image_features and mm_encoder_outputs, in order of appearance over the rows.
        Raises ImageTokenMismatchError when image tokens and image embeddings differ in number.

        Args:
            input_ids: [B, T], with Q image tokens per image; exactly one of input_ids and inputs_embeds is given.
            attention_mask, position_ids: [B, T], 0 at padding; positions restart at 0 with every sample of packed rows.
            past_key_values: KV cache of the tokens before input_ids.
            inputs_embeds: word embeddings [B, T, D] with image embeddings already inserted.
            pixel_values: [N, 3, H, W]; of tiles [R, 3, H, W], with image_sizes [N, 2] (height, width) unless the layout has them.
            labels: [B, T], not shifted; -100 (ignore index) where a token is not supervised.
            logits_to_keep: the last n positions (0: all), an int64 index into T, or a boolean mask [B, T] (logits [kept, V]).
            use_cache: return a KV cache; always off when labels are given.
            mm_encoder_outputs: {"image": object with pooler_output, a list of [Q, D] or [N, Q, D]}.
            num_items_in_batch: divisor of the summed cross entropy; None takes the mean over the supervised positions.
            image_features: [N, P, C], the output of `encode_images`.
            layout: what the collator knows of the rows: packed samples, positions of image tokens and of supervised tokens.
        """
        # In this order on every rank: where weights are sharded, all ranks gather those of a module at the same time.
        inputs_embeds = self._embed_tokens(input_ids, inputs_embeds)
        image_embeds = self._embed_images(pixel_values, image_features, mm_encoder_outputs, image_sizes, layout.image_sizes)
        inputs_embeds = self._insert_images(inputs_embeds, image_embeds, input_ids, past_key_values, layout)
        arguments = self._attention_arguments(inputs_embeds, attention_mask, position_ids, past_key_values, layout) | kwargs
        if labels is None:
            outputs = self.model.language_model(inputs_embeds=inputs_embeds, **{"use_cache": use_cache, **arguments})
            logits = self.lm_head(_select_hidden_states(outputs.last_hidden_state, logits_to_keep))
            return CausalLMOutputWithPast(None, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions)
        if image_embeds is None:
            inputs_embeds = inputs_embeds + self._zero_through_vision(inputs_embeds, image_features)
        if layout.padded_right:
            arguments["attention_mask"] = None
        positions = find_supervised_positions(labels) if layout.supervised_positions is None else layout.supervised_positions
        positions = positions.to(inputs_embeds.device)
        arguments |= sparse_last_layer_kwargs(self.model.language_model, positions)
        outputs = self.model.language_model(inputs_embeds=inputs_embeds, **{**arguments, "use_cache": False})
        states = _states_at(outputs.last_hidden_state, positions)
        targets = labels.to(states.device).flatten().index_select(0, positions + 1)
        summed_loss = self.lm_head(states, targets, self._chunk_size)
        # num_items_in_batch may be a one-element CPU tensor: dividing by it needs no synchronisation.
        loss = summed_loss / (max(len(positions), 1) if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, hidden_states=outputs.hidden_states)

    @property
    def _chunk_size(self) -> int | None:
        """Supervised positions whose logits are computed at a time; None: all."""
        gib = self.logits_memory_gib
        return None if gib is None else positions_per_chunk(gib, self.config.text_config.vocab_size)

    def _embed_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Word embeddings [B, T, D] of input_ids [B, T]; those that are given are returned unchanged."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is expected")
        embeddings: torch.Tensor = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        return embeddings

    def _attention_arguments(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        layout: BatchLayout,
    ) -> dict[str, Any]:
        """Arguments of the language model about positions and what attends to what."""
        arguments = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        if layout.cu_seqlens is None:
            return arguments
        if attention_mask is not None or position_ids is None or past_key_values is not None:
            raise ValueError("packed rows need position_ids that restart with every sample, no attention_mask and no past_key_values")
        return arguments | packed_attention_kwargs(self.model.language_model, inputs_embeds, layout.cu_seqlens, layout.max_length)

    def _embed_images(
        self,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        mm_encoder_outputs: dict[str, Any] | None,
        image_sizes: torch.Tensor | None,
        known_sizes: Sequence[Size] = (),
    ) -> ImageEmbeddings | None:
        """Image embeddings from pixels, features or embeddings; None when the batch has no image. known_sizes: in place of image_sizes."""
        encoded = (mm_encoder_outputs or {}).get("image")
        if sum(images is not None for images in (pixel_values, image_features, encoded)) > 1:
            raise ValueError("images must be passed as one of pixel_values, image_features and mm_encoder_outputs")
        if encoded is not None:
            tokens = list(encoded.pooler_output)
            return ImageEmbeddings(torch.cat(tokens), [len(of_image) for of_image in tokens])
        if pixel_values is not None and len(pixel_values):
            image_features = self.encode_images(pixel_values)
        if image_features is None or not len(image_features):
            return None
        return self.project(image_features, known_sizes if image_sizes is None else _as_sizes(image_sizes))

    def _insert_images(
        self,
        inputs_embeds: torch.Tensor,
        image_embeds: ImageEmbeddings | None,
        input_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        layout: BatchLayout,
    ) -> torch.Tensor:
        """Replace the embeddings of image tokens by those of the images: [B, T, D] -> [B, T, D].

        Without input_ids, the embeddings contain those of the images already; after a prompt, there are no image tokens.
        """
        if input_ids is None and image_embeds is not None:
            raise ValueError("images need input_ids; inputs_embeds must already contain the image embeddings")
        follows_prompt = past_key_values is not None and past_key_values.get_seq_length() > 0
        if input_ids is None or (image_embeds is None and follows_prompt):
            return inputs_embeds
        positions = layout.image_positions
        if positions is None:
            positions = find_image_tokens(input_ids, self.config.image_token_id)
        if len(positions) != (0 if image_embeds is None else len(image_embeds.tokens)):
            counts = [] if image_embeds is None else image_embeds.counts
            raise ImageTokenMismatchError(layout.describe_mismatch(input_ids == self.config.image_token_id, counts))
        if image_embeds is None:
            return inputs_embeds
        flat_embeds = inputs_embeds.flatten(0, 1)
        tokens = image_embeds.tokens.to(flat_embeds.device, flat_embeds.dtype)
        return flat_embeds.index_copy(0, positions.to(flat_embeds.device), tokens).view_as(inputs_embeds)

    def _zero_through_vision(self, inputs_embeds: torch.Tensor, image_features: torch.Tensor | None) -> torch.Tensor:
        """A zero that depends on the connector, from a blank image: added to the inputs of a batch without images.

        Every rank must run vision encoder and connector at the same point, forward and backward: FSDP and ZeRO-3 gather weights and
        reduce gradients module by module, and DDP waits for every gradient. FSDP2 reduces a layer's gradients in its turn only when
        its input requires a gradient, so the zero is added to the inputs, where other ranks have their image embeddings. When
        image_features are passed, even empty ones, no rank runs the encoder.
        """
        side = self.config.image_side
        sizes = [] if self.config.tiles is None else [(side, side)]
        rows = 1 if self.config.tiles is None else self.config.tile_grid.num_rows(sizes[0])
        if image_features is None:
            image_features = self.encode_images(torch.zeros(rows, 3, side, side, device=inputs_embeds.device))
        else:
            image_features = image_features.new_zeros(rows, *image_features.shape[1:])
        return (0 * self.project(image_features, sizes).tokens.float().sum()).to(inputs_embeds.dtype)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Encode the images once and repeat them per sample: a sample with images A and B and two beams gives A B A B."""
        keys = ("pixel_values", "image_features", "mm_encoder_outputs", "image_sizes")
        pixels, features, encoded, image_sizes = (model_kwargs.pop(key, None) for key in keys)
        image_embeds = self._embed_images(pixels, features, encoded, image_sizes)
        repeated = None
        if image_embeds is not None and input_ids is not None:
            image_token_mask = input_ids == self.config.image_token_id
            images = images_of_rows(image_token_mask.sum(-1).tolist(), image_embeds.counts)
            if images is None:
                raise ImageTokenMismatchError(UNKNOWN_LAYOUT.describe_mismatch(image_token_mask, image_embeds.counts))
            embeds = image_embeds.tokens.split(image_embeds.counts)
            repeated = [embeds[i] for row in images for _ in range(expand_size) for i in row]
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


def _as_sizes(image_sizes: torch.Tensor) -> list[Size]:
    """Heights and widths, on the host."""
    return [(height, width) for height, width in image_sizes.tolist()]


def _select_hidden_states(hidden_states: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, D] at the requested positions: the last n (0: all), an index into T, or a mask [B, T] -> [kept, D]."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    return hidden_states[positions] if positions.dtype == torch.bool else hidden_states[:, positions]


def _states_at(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, T, D] at indices [S] of the flattened batch -> [S, D]; those of a sparse last layer are [S, D] already."""
    return hidden_states if hidden_states.ndim == 2 else hidden_states.flatten(0, 1).index_select(0, positions)
