"""A model of any family in this process, as an answerer. Prompts are built by the same function as in training."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from answering.decoding.cuda_graphs import CudaGraphCache, capture_cuda_graph
from answering.prompts import PromptPolicy
from answering.protocol import Description, ImageInput, Request
from answering.request_images import load_image, resize_to_max_side
from answering.rerank.self_evaluation import SelfEvaluatingAnswerer
from model.kernels.varlen_attention import use_packed_attention
from model.param_groups import unwrapped
from model.processors.sample_processor import Prompt, SampleProcessor
from model.siglip_qwen.modeling import VisionLanguageModel


class FamilyAnswerer(SelfEvaluatingAnswerer):
    """Answers with a vision-language model of a family.

    Args:
        model: the model, or a PEFT model around it.
        processor: of the same checkpoint.
        policy: prompts and answer cleaning; None asks as in training (the prompts of the processor, no cleaning).
        settings: for the description, such as folder and quantisation.
        kind: kind of the system, for the description.
        max_image_side: images are downscaled to it before the processor reads them; None for none.
    """

    def __init__(
        self,
        model: Any,
        processor: SampleProcessor,
        policy: PromptPolicy | None = None,
        settings: Mapping[str, object] | None = None,
        *,
        kind: str = "checkpoint",
        max_image_side: int | None = None,
    ):
        super().__init__(
            model, processor.tokenizer, policy or PromptPolicy.of_checkpoint(processor.prompts), processor.end_ids(unwrapped(model))
        )
        self.processor, self.kind, self.max_image_side = processor, kind, max_image_side
        self.max_positions = processor.max_positions
        inner = unwrapped(model)
        if isinstance(inner, VisionLanguageModel):
            use_packed_attention(inner.model.language_model)
        self.cuda_graphs_unsupported = self._why_no_cuda_graphs(inner)
        if self.cuda_graphs_unsupported is None:
            self.graph_cache = CudaGraphCache(model, capture_cuda_graph)
        self.settings = dict(settings or {})

    def _why_no_cuda_graphs(self, inner: Any) -> str | None:
        if not isinstance(inner, VisionLanguageModel):
            return f"{type(inner).__name__} does not support it"
        if getattr(inner, "hf_quantizer", None) is not None:
            return "the language model is quantised"
        return None if self.device.type == "cuda" else f"the model is on {self.device.type}"

    @property
    def description(self) -> Description:
        return Description(self.kind, {**self.settings, **self.policy.settings()})

    def encode(self, request: Request) -> Prompt:
        """The prompt of a request. Raises EncodingError or ImageError."""
        images = [self._load(image) for image in request.images]
        return self.processor.prompt_with_images(self.policy.messages(request), images, request.task)

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of left-padded prompts, as the family counts them."""
        return self.processor.positions(unwrapped(self.model), input_ids, attention_mask, images)

    def _load(self, image: ImageInput) -> Image.Image:
        loaded = load_image(image)
        return loaded if self.max_image_side is None else resize_to_max_side(loaded, self.max_image_side)
