"""Qwen3-VL and Qwen2.5-VL as answerers, unquantised or quantised, without torchvision.

Prompts are built piece by piece from the model's own chat template, so that control tokens in a user's text are tokenised as text.

Shapes: N prompts, T tokens.
"""

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from answering.config import QwenVlSystem
from answering.prompts import PromptPolicy
from answering.protocol import Description, ImageInput, Request
from answering.request_images import load_image, resize_to_max_side
from answering.rerank.self_evaluation import SelfEvaluatingAnswerer
from answering.systems.local_model import Prompt
from dataset.loading.encoded_sample import EncodingError
from errors import UsageError, loading
from model.kernels.device_capability import default_dtype
from model.quantization import disable_avx512bf16, quantization_config
from model.siglip_qwen.chat_template import check_answers_follow
from model.siglip_qwen.processor import Processor
from visual.hub_name import pretrained
from visual.image_processor import load_image_processor

CLASSES = {"qwen3_vl": Qwen3VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}

IMAGE_TOKEN, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


class QwenVlAnswerer(SelfEvaluatingAnswerer):
    """Answers with a Qwen vision-language model; images are resized by its own image processor, after `max_image_side`, if any."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, system: QwenVlSystem):
        limit = int(model.config.get_text_config(decoder=True).max_position_embeddings)
        # One image token per image here; `_expand_image_tokens` repeats it according to the size of the image.
        self.processor = Processor(tokenizer, image_processor, image_token=IMAGE_TOKEN, tokens_per_image=1, max_length=limit)
        eos_token_ids = model.generation_config.eos_token_id
        super().__init__(
            model,
            tokenizer,
            PromptPolicy.from_config(system),
            [
                self.processor.end_of_turn_id,
                *(eos_token_ids if isinstance(eos_token_ids, list) else [eos_token_ids or tokenizer.eos_token_id]),
            ],
        )
        self.image_processor, self.system = image_processor, system

    @property
    def description(self) -> Description:
        system = self.system
        settings = {"path": system.path, "quantization": system.quantization, "max_image_side": system.max_image_side}
        return Description(system.kind, {**settings, **self.policy.settings()})

    @property
    def device(self) -> torch.device:
        """The device of the prompts: the first accelerator of a model that is split over several devices."""
        device_map = getattr(self.model, "hf_device_map", None) or {"": self.model.device}
        return torch.device(next((device_name for device_name in device_map.values() if device_name not in ("cpu", "disk")), "cpu"))

    def encode(self, request: Request) -> Prompt:
        """The prompt of a request. Raises EncodingError or ImageError."""
        prompt_ids = self.processor.prompt(self.policy.messages(request), len(request.images))
        images = self._pixels([self._load(image) for image in request.images])
        ids = self._expand_image_tokens(prompt_ids, images)
        if len(ids) > self.processor.max_length:
            raise EncodingError(f"the prompt has {len(ids)} tokens, the model takes at most {self.processor.max_length}")
        return Prompt(ids, self.processor.readable(prompt_ids), images, ids.count(self.processor.image_token_id))

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids [4, N, T]: in the text, then time, height and width (multimodal RoPE, arXiv:2409.12191)."""
        text = super().positions(input_ids, attention_mask, images)[None]
        if not images:
            return text.expand(4, -1, -1)
        multimodal, _ = self.model.model.get_rope_index(
            input_ids=input_ids,
            mm_token_type_ids=(input_ids == self.processor.image_token_id).int(),
            image_grid_thw=images["image_grid_thw"],
            attention_mask=attention_mask,
        )
        return torch.cat([text, multimodal])

    def _load(self, image: ImageInput) -> Image.Image:
        """The image, downscaled if max_image_side says so. Raises ImageError."""
        max_side = self.system.max_image_side
        return load_image(image) if max_side is None else resize_to_max_side(load_image(image), max_side)

    def _pixels(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [patches, values per patch] and image_grid_thw [images, 3]; empty without images."""
        if not images:
            return {}
        try:
            encoded = self.image_processor(images=images, return_tensors="pt")
        except ValueError as error:
            raise EncodingError(f"the image processor cannot encode an image: {error}") from error
        return {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}

    def _expand_image_tokens(self, prompt_ids: list[int], images: dict[str, torch.Tensor]) -> list[int]:
        """Replace each image token by as many as its image has merged patches, between the vision start and end tokens."""
        start, end = self.tokenizer.convert_tokens_to_ids([VISION_START, VISION_END])
        grids = iter(images["image_grid_thw"].tolist() if images else [])
        image_token, patches_per_token = self.processor.image_token_id, self.image_processor.merge_size**2
        ids: list[int] = []
        for token in prompt_ids:
            if token == image_token:
                time, height, width = next(grids)
                ids += [start, *[image_token] * (time * height * width // patches_per_token), end]
            else:
                ids.append(token)
        return ids


def load(system: QwenVlSystem, device: torch.device | str, dtype: torch.dtype | None = None) -> QwenVlAnswerer:
    """Load a configured system. With `max_memory` the model is split over devices, the CPU and offload_folder.

    Raises UsageError if it cannot be loaded or is of another family.
    """
    where = f"system {system.name}, path"
    dtype = dtype or default_dtype(device)
    with loading(where, system.path):
        config = AutoConfig.from_pretrained(**pretrained(system.path))
    if config.model_type != system.kind:
        raise UsageError(f"{where}: {system.path} is a {config.model_type} model, the system's kind says {system.kind}")
    with loading(where, system.path):
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(system.path))
        image_processor = load_image_processor(system.path)
    if not tokenizer.chat_template:
        raise UsageError(f"{where}: the tokenizer of {system.path} has no chat template")
    check_answers_follow(tokenizer, f"{where}: {system.path}")
    with loading(where, system.path):
        model = CLASSES[system.kind].from_pretrained(
            **pretrained(system.path), config=config, dtype=dtype, **_load_options(system, device, dtype)
        )
    disable_avx512bf16(model)
    return QwenVlAnswerer(model.eval(), tokenizer, image_processor, system)


def _load_options(system: QwenVlSystem, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of from_pretrained: quantisation of the language model, and the device map."""
    options: dict[str, Any] = {"device_map": {"": device}}
    quantized = quantization_config(system.quantization, dtype, skip_modules=["lm_head", "model.visual"])
    if system.max_memory is not None:
        memory = {int(device_name) if device_name.isdigit() else device_name: size for device_name, size in system.max_memory.items()}
        options = {"device_map": "auto", "max_memory": memory, "offload_folder": system.offload_folder}
        if quantized is not None:
            quantized.llm_int8_enable_fp32_cpu_offload = True
    return options | ({"quantization_config": quantized} if quantized is not None else {})
