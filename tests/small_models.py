"""Small untrained models of the families that the demo has no part for, in the formats of the hub."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    T5Config,
)


def language(family: str, tokenizer: Any) -> OPTConfig | T5Config:
    """A small language model of either kind."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "vocab_size": 1536}
    if family == "opt":
        return OPTConfig(
            hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=96,
            bos_token_id=tokenizer.eos_token_id, **ends,
        )  # fmt: skip
    return T5Config(
        d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, decoder_start_token_id=tokenizer.pad_token_id,
        feed_forward_proj="gated-gelu", **ends,
    )  # fmt: skip


def build_blip2(folder: Path, family: str, parts: Path) -> Path:
    """A folder with a small untrained BLIP-2. Its weights are scaled up, so that answers are unambiguous and depend on the images."""
    tokenizer = AutoTokenizer.from_pretrained(parts / "qwen3")
    config = Blip2Config(
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
            "patch_size": 14, "initializer_range": 0.05,
        },
        qformer_config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 64},
        text_config=language(family, tokenizer),
        num_query_tokens=4,
        image_token_index=1535,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_()
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


LLAVA_TEMPLATE = """
{%- for message in messages -%}
  {%- if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif -%}
  {%- for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor -%}
  {%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text + ' ' }}{% endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""
"""Renders as the template of LLaVA-1.5 does: words, no control tokens; contents are lists of parts."""


def llama_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's: a space before every text, byte fallback, `<s>` first."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)])
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    tokenizer.chat_template = LLAVA_TEMPLATE
    return tokenizer


def build_llava(folder: Path, parts: Path, kind: str) -> Path:
    """A small LLaVA. kind: siglip_qwen (as our exports, ChatML), or clip_llama (as LLaVA-1.5, words)."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    image = {"image_size": 28, "patch_size": 14}
    if kind == "siglip_qwen":
        tokenizer = AutoTokenizer.from_pretrained(parts / "qwen3")
        language = Qwen3Config(**size, num_key_value_heads=1, head_dim=32, vocab_size=1536, tie_word_embeddings=True)
        config = LlavaConfig(
            vision_config=SiglipVisionConfig(**size, **image, vision_use_head=False),
            text_config=language,
            image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            vision_feature_select_strategy="full",
            image_seq_length=4,
        )
        image_processor: Any = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    else:
        tokenizer = llama_tokenizer(["USER: What color is the circle? ASSISTANT: red", "Is there a blue star? no", "2 of them"] * 20)
        language = LlamaConfig(**size, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=3)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**size, **image),
            text_config=language,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="default",
            image_seq_length=4,
        )
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder
