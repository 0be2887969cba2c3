"""Small untrained models, and batches for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.dataset.conftest import raw as raw

Build = Callable[..., VisionLanguageModel]


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained Qwen2 with an untied `lm_head`."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("qwen2")
    config = Qwen2Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, vocab_size=1536,
        tie_word_embeddings=False, max_position_embeddings=1024, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def settings(parts: Path) -> Callable[..., SiglipQwenConfig]:
    """Returns a SiglipQwenConfig of the small base models, with changes."""

    def make(**changes: Any) -> SiglipQwenConfig:
        small = {"vision": str(parts / "siglip"), "language": str(parts / "qwen3"), "lora": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)}
        return SiglipQwenConfig(**{**small, **changes})

    return make


@pytest.fixture(scope="session")
def make(settings: Callable[..., SiglipQwenConfig], processor: Processor) -> Build:
    """Returns a model of the small base models; connector weights are scaled up so that images affect the logits."""

    def make(**changes: Any) -> VisionLanguageModel:
        torch.manual_seed(0)
        model = build(settings(**changes), image_token_id=processor.image_token_id)
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.data.mul_(3)
        return model

    return make


@pytest.fixture(scope="session")
def model(make: Build) -> VisionLanguageModel:
    """A model that tests must not modify."""
    return make()


@pytest.fixture(scope="session")
def batch(processor: Processor) -> Callable[..., dict[str, torch.Tensor]]:
    """Returns rows of random text with the given numbers of images: batch(1, 2, 0) has three rows and three images."""

    def make(*images: int, pad: str = "right", seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        image_tokens = [processor.image_token_id] * processor.tokens_per_image
        rows = []
        for row, count in enumerate(images):
            texts = torch.randint(100, 1500, (count + 1, 5 + row), generator=generator).tolist()
            rows.append([token for text in texts[:-1] for token in (*text, *image_tokens)] + texts[-1])
        longest = max(map(len, rows))
        padding = [[0] * (longest - len(row)) for row in rows]
        left = pad == "left"
        ids = [fill + row if left else row + fill for row, fill in zip(rows, padding, strict=True)]
        mask = [
            [0] * len(fill) + [1] * len(row) if left else [1] * len(row) + [0] * len(fill) for row, fill in zip(rows, padding, strict=True)
        ]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "pixel_values": torch.randn(sum(images), 3, 96, 96, generator=generator),
        }

    return make


def stock(model: VisionLanguageModel) -> LlavaForConditionalGeneration:
    """LLaVA of transformers with the same weights."""
    config = model.config
    vision = config.vision_config.__class__(**config.vision_config.to_dict())
    layer = config.vision_feature_layer
    if layer == "last_hidden_state":
        vision.tie_last_hidden_states, layer = True, -1
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=config.text_config.__class__(**config.text_config.to_dict()),
            image_token_index=config.image_token_id,
            vision_feature_layer=layer,
            vision_feature_select_strategy="full",
        )
    )
    llava.load_state_dict(model.state_dict())
    llava.generation_config = model.generation_config
    return llava.eval()


def stock_supports_final_norm(model: VisionLanguageModel) -> bool:
    """Whether stock LLaVA supports `tie_last_hidden_states` (features after the final norm); older transformers ignore it."""
    llava, pixels = stock(model), torch.zeros(1, 3, 96, 96)
    features = []
    for tied in (False, True):
        llava.config.vision_config.tie_last_hidden_states = tied
        with torch.no_grad():
            features.append(llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1])
    return not torch.equal(*features)


def repeats_images_by_sample(model: Any, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether all beams of a sample get the same prompt; older stock LLaVA gives two beams A A B B instead of A B A B."""
    prompts: list[torch.Tensor] = []
    language = model.model.language_model
    hook = language.register_forward_pre_hook(lambda _, __, kwargs: prompts.append(kwargs["inputs_embeds"]), with_kwargs=True)
    model.generate(**inputs, max_new_tokens=1, num_beams=2, do_sample=False)
    hook.remove()
    first, second = prompts[0].unflatten(0, (-1, 2)).unbind(1)
    return torch.equal(first, second)


def inputs_for_stock(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch without empty tensors: stock LLaVA rejects an empty pixel tensor."""
    return {key: value for key, value in batch.items() if len(value)}
