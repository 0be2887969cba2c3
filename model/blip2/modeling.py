"""BLIP-2 in transformers' own class; the query embeddings of the image come first, whatever the ids of the folder's tokenizer.

The stock forward pass looks for a placeholder id: a folder whose `image_token_index` is not the `<image>` of its tokenizer would be
trained and asked without the image. Here the first positions of a sample have an id behind the vocabulary.

Shapes: N images (= samples), Q queries per image, T tokens, L tokens of the decoder, D hidden size of the language model.
"""

from typing import Any

import torch
from transformers import Blip2ForConditionalGeneration, GenerationConfig, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast, Seq2SeqLMOutput

from errors import UsageError
from model.param_groups import GroupPaths
from model.stock.stock_model import StockModel

GROUP_PATHS: GroupPaths = {
    "vision": ("vision_model.",),
    "connector": ("query_tokens", "qformer.", "language_projection."),
    "language": ("language_model.",),
}
"""The connector is the Q-Former with its queries, and the projection to word embeddings."""


class DecoderOnlyBlip2(Blip2ForConditionalGeneration):
    """BLIP-2 with OPT, whose language model continues a prompt."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """Logits [N, T, V] of the last `logits_to_keep` positions (0: all), or [S, V] of those of a mask [N, T]."""
        outputs = self.language_model.model(
            inputs_embeds=input_embeddings(self, input_ids, pixel_values),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = outputs.last_hidden_state
        kept = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[logits_to_keep]
        return CausalLMOutputWithPast(logits=self.language_model.lm_head(kept), past_key_values=outputs.past_key_values)


class EncoderDecoderBlip2(Blip2ForConditionalGeneration):
    """BLIP-2 with Flan-T5, whose encoder reads the prompt and whose decoder answers."""

    def encode_prompt(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Last hidden states [N, T, D] of the encoder."""
        embeds = input_embeddings(self, input_ids, pixel_values)
        hidden: torch.Tensor = self.language_model.encoder(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state
        return hidden

    def forward(  # type: ignore[override]
        self,
        decoder_input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Seq2SeqLMOutput:
        """Logits [N, L, V], of a prompt and its image or of what the encoder made of them. attention_mask: of the prompt, [N, T]."""
        if encoder_hidden_states is None:
            assert input_ids is not None and pixel_values is not None
            encoder_hidden_states = self.encode_prompt(input_ids, attention_mask, pixel_values)
        outputs: Seq2SeqLMOutput = self.language_model(
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return outputs


def input_embeddings(model: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
    """Embeddings [N, T, D] of a text whose image tokens, behind the vocabulary, are replaced by the query embeddings of the images."""
    embed = model.get_input_embeddings()
    if pixel_values is None:
        embedded: torch.Tensor = embed(input_ids)
        return embedded
    is_image = input_ids >= model.first_id_behind_vocabulary
    embeds = embed(input_ids.masked_fill(is_image, 0))
    queries = model.get_image_features(pixel_values.to(model.vision_model.embeddings.patch_embedding.weight.dtype)).pooler_output
    replaced: torch.Tensor = embeds.masked_scatter(is_image[:, :, None], queries.to(embeds.dtype))
    return replaced


def is_encoder_decoder(config: PreTrainedConfig) -> bool:
    """Whether the language model is a Flan-T5."""
    return bool(config.text_config.is_encoder_decoder)


class StockBlip2(StockModel):
    """A BLIP-2 with OPT or Flan-T5."""

    def read_config(self, key: str, path: str) -> PreTrainedConfig:
        config = super().read_config(key, path)
        if config.text_config.model_type not in ("opt", "t5"):
            raise UsageError(f"{key}: {path} has a {config.text_config.model_type} as its language model; OPT or T5 is expected")
        return config


def _class(config: PreTrainedConfig) -> type[Blip2ForConditionalGeneration]:
    return EncoderDecoderBlip2 if is_encoder_decoder(config) else DecoderOnlyBlip2


BLIP2 = StockBlip2(
    _class,
    model_types=("blip-2",),
    expected="a BLIP-2",
    group_paths=GROUP_PATHS,
    # All but the layers of the language model.
    not_quantised=["vision_model", "qformer", "language_projection", "language_model.lm_head"],
)


def prepared(model: Any, image_token_id: int) -> Any:
    """The model with the image token of its processor, behind the vocabulary, and the end tokens of its folder alone.

    A penalty or a minimum length of the folder's generation settings would change every probability.
    """
    model.first_id_behind_vocabulary, model.generation_end_ids = image_token_id, _end_ids(model)
    model.generation_config = GenerationConfig(eos_token_id=model.generation_end_ids)
    return model


def _end_ids(model: Any) -> list[int]:
    """All end tokens in the folder's settings (a line break for OPT)."""
    ids: list[int] = []
    for settings in (model.config.text_config, model.generation_config, model.language_model.generation_config):
        eos = settings.eos_token_id
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return list(dict.fromkeys(ids))
