"""The demo's tiny models: their architectures, tokenizer and image processors, saved in the standard Hugging Face formats."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Tokenizer

from dataset.synthetic.scene import GRID

IMAGE_SIZE = 96
PATCH_SIZE = 16
VISION_WIDTH, VISION_LAYERS = 128, 4
LANGUAGE_WIDTH = 192
VOCABULARY = 1536
_ENCODER_SIZE = {"hidden_size": VISION_WIDTH, "intermediate_size": 3 * VISION_WIDTH, "num_attention_heads": VISION_WIDTH // 64}

CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = ("<think>", "</think>")

CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- set parts = namespace(text='') -%}
  {%- if message.content is string -%}
    {%- set parts.text = message.content -%}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type == 'image' -%}
        {%- set parts.text = parts.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
      {%- else -%}
        {%- set parts.text = parts.text + part.text -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {%- if message.role == 'assistant' and loop.last and not vision -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
  {{- parts.text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false and not vision -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
"""ChatML as in Qwen3: an empty think block before the last answer when thinking is off, none before earlier answers."""


def build_tokenizer(corpus: Iterable[str]) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer on `corpus`, with Qwen's control tokens and a chat template like Qwen3's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    size = VOCABULARY - len(CONTROL_TOKENS) - len(PLAIN_ADDED_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    backend.add_special_tokens(list(CONTROL_TOKENS))
    backend.add_tokens(list(PLAIN_ADDED_TOKENS))
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=backend, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, model_max_length=2048
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def plain_tokenizer(tokenizer: Qwen2Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer without a chat template, in the class that reads tokenizer.json as it is.

    Qwen2Tokenizer splits texts by Qwen's own rules once it is loaded from a folder, which makes two tokens of ` 7`.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token, model_max_length=2048
    )


def _vision_size(layers: int) -> dict[str, Any]:
    return {**_ENCODER_SIZE, "num_hidden_layers": layers, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}


def _text_tokens(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """Size of the vocabulary and its special tokens; no text has a token for its beginning."""
    return {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def build_siglip(tokenizer: Qwen2Tokenizer) -> transformers.SiglipModel:
    """An untrained SigLIP of fixed resolution; logit scale and bias are initialised as in Zhai et al. 2023 (arXiv:2303.15343)."""
    text = {
        **_ENCODER_SIZE,
        "num_hidden_layers": 3,
        **_text_tokens(tokenizer),
        "max_position_embeddings": 64,
        "projection_size": VISION_WIDTH,
    }
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=_vision_size(VISION_LAYERS)))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    return model


def build_clip(tokenizer: Qwen2Tokenizer) -> transformers.CLIPModel:
    """An untrained CLIP; its text encoder pools at the tokenizer's end token."""
    text = {**_ENCODER_SIZE, "num_hidden_layers": 3, **_text_tokens(tokenizer), "max_position_embeddings": 96}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=_vision_size(VISION_LAYERS), projection_dim=VISION_WIDTH)
    )


def _qwen3_size(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        **_text_tokens(tokenizer), "hidden_size": LANGUAGE_WIDTH, "intermediate_size": 3 * LANGUAGE_WIDTH, "num_hidden_layers": 5,
        "num_attention_heads": LANGUAGE_WIDTH // 64, "num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }  # fmt: skip


def build_qwen3(tokenizer: Qwen2Tokenizer) -> transformers.Qwen3ForCausalLM:
    """An untrained Qwen3."""
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_qwen3_size(tokenizer)))


def build_qwen3_vl(tokenizer: Qwen2Tokenizer) -> transformers.Qwen3VLForConditionalGeneration:
    """An untrained Qwen3-VL with one DeepStack layer."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [12, 10, 10]}
    vision = {
        "depth": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 2, "patch_size": PATCH_SIZE,
        "out_hidden_size": LANGUAGE_WIDTH, "num_position_embeddings": 144, "deepstack_visual_indexes": [1],
    }  # fmt: skip
    token_id = tokenizer.convert_tokens_to_ids
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config={**_qwen3_size(tokenizer), "rope_parameters": rope},
            vision_config=vision,
            image_token_id=token_id("<|image_pad|>"),
            video_token_id=token_id("<|video_pad|>"),
            vision_start_token_id=token_id("<|vision_start|>"),
            vision_end_token_id=token_id("<|vision_end|>"),
            tie_word_embeddings=True,
        )
    )


def build_blip2(tokenizer: Qwen2Tokenizer) -> transformers.Blip2ForConditionalGeneration:
    """An untrained BLIP-2 with an OPT: a query of the Q-Former for each grid cell of a scene.

    Its vision encoder ends where that of the demo's VLM is read: one layer before SigLIP's last.
    """
    qformer = {
        "hidden_size": VISION_WIDTH, "intermediate_size": 2 * VISION_WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "encoder_hidden_size": VISION_WIDTH, "cross_attention_frequency": 1, "vocab_size": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    language = transformers.OPTConfig(
        hidden_size=LANGUAGE_WIDTH, word_embed_proj_dim=LANGUAGE_WIDTH, ffn_dim=3 * LANGUAGE_WIDTH, num_hidden_layers=4,
        num_attention_heads=LANGUAGE_WIDTH // 64, max_position_embeddings=512, dropout=0.0, **_text_tokens(tokenizer),
    )  # fmt: skip
    model = transformers.Blip2ForConditionalGeneration(
        transformers.Blip2Config(
            vision_config={**_vision_size(VISION_LAYERS - 1), "hidden_act": "gelu_pytorch_tanh"},
            qformer_config=qformer,
            text_config=language,
            num_query_tokens=GRID * GRID,
            image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        )
    )
    # The class initialises all queries with zeros; equal queries get equal gradients and stay equal.
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    return model


def build_resnet(tokenizer: Qwen2Tokenizer) -> transformers.ResNetModel:
    """An untrained ResNet whose last feature map has a position for each grid cell of a scene."""
    del tokenizer
    sizes = [32, 64, 128, 256]
    return transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=32, hidden_sizes=sizes, depths=[1, 1, 1, 1], layer_type="basic")
    )


def build_gpt2(tokenizer: Qwen2Tokenizer) -> transformers.GPT2LMHeadModel:
    """An untrained GPT-2."""
    tokens = {**_text_tokens(tokenizer), "bos_token_id": tokenizer.eos_token_id}
    size = {"n_embd": LANGUAGE_WIDTH, "n_layer": 4, "n_head": LANGUAGE_WIDTH // 64, "n_inner": 3 * LANGUAGE_WIDTH, "n_positions": 512}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **tokens))


_BUILDERS: dict[str, Callable[[Qwen2Tokenizer], PreTrainedModel]] = {
    "siglip": build_siglip,
    "clip": build_clip,
    "qwen3": build_qwen3,
    "qwen3_vl": build_qwen3_vl,
    "blip2": build_blip2,
    "resnet": build_resnet,
    "gpt2": build_gpt2,
}

TINY_MODELS = tuple(_BUILDERS)
"""The models in training order: later ones may start from the weights of earlier ones."""


def build_tiny_model(model_name: str, tokenizer: Qwen2Tokenizer, seed: int) -> PreTrainedModel:
    """An untrained model by name; its weights do not depend on which other models are built."""
    torch.manual_seed(seed * len(TINY_MODELS) + TINY_MODELS.index(model_name))
    return _BUILDERS[model_name](tokenizer)


def image_processor(model_name: str) -> Any:
    """The image processor of a model; images of the demo's size (96 x 96 pixels) are not resized.

    Raises ValueError for a model without a vision encoder.
    """
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    match model_name:
        case "siglip":
            return transformers.SiglipImageProcessorPil(size=size)
        case "clip":
            return transformers.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
        case "blip2":
            half = [0.5, 0.5, 0.5]  # as SigLIP's, whose layers it starts from
            return transformers.BlipImageProcessorPil(size=size, image_mean=half, image_std=half)
        case "resnet":
            return transformers.ConvNextImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_pct=1.0)
        case "qwen3_vl":
            limits = {"shortest_edge": 32 * 32, "longest_edge": 4096 * 32 * 32}
            return transformers.Qwen2VLImageProcessorPil(patch_size=PATCH_SIZE, merge_size=2, temporal_patch_size=2, size=limits)
    raise ValueError(f"{model_name} has no image processor")


def save_tiny_model(folder: Path, model_name: str, model: PreTrainedModel, tokenizer: Qwen2Tokenizer) -> None:
    """Save a model like a model folder on the Hub: bf16 safetensors, tokenizer and image processor.

    Args:
        folder: output folder; created when missing.
        model_name: one of TINY_MODELS.
        model: the model; it is converted to bf16 in place.
        tokenizer: the tokenizer shared by all tiny models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model_name == "clip":
        transformers.CLIPProcessor(image_processor=image_processor(model_name), tokenizer=tokenizer).save_pretrained(folder)
    else:
        if model_name != "resnet":
            (plain_tokenizer(tokenizer) if model_name in ("blip2", "gpt2") else tokenizer).save_pretrained(folder)
        if model_name not in ("qwen3", "gpt2"):
            image_processor(model_name).save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
