"""Our own model as an answerer. Prompts are built by the same function as in training."""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from answering.decoding.cuda_graphs import CudaGraphCache, capture_cuda_graph
from answering.prompts import PromptPolicy
from answering.protocol import Description, Request
from answering.request_images import load_image
from answering.rerank.self_evaluation import SelfEvaluatingAnswerer
from answering.systems.local_model import Prompt
from dataset.loading.encoded_sample import EncodingError
from model.kernels.varlen_attention import use_packed_attention
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor


class CheckpointAnswerer(SelfEvaluatingAnswerer):
    """Answers with a VisionLanguageModel.

    Args:
        model: the model, or a PEFT model around it, or its LLaVA export.
        processor: of the same checkpoint.
        policy: prompts and answer cleaning; None asks as in training (the prompts of the processor, no cleaning).
        settings: for the description, such as folder and quantisation.
    """

    def __init__(self, model: Any, processor: Processor, policy: PromptPolicy | None = None, settings: Mapping[str, object] | None = None):
        super().__init__(
            model,
            processor.tokenizer,
            policy or PromptPolicy.of_checkpoint(processor.prompts),
            [processor.end_of_turn_id, int(processor.tokenizer.eos_token_id)],
        )
        self.processor = processor
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(inner, VisionLanguageModel):
            use_packed_attention(inner.model.language_model)
        self.cuda_graphs_unsupported = self._why_no_cuda_graphs(inner)
        if self.cuda_graphs_unsupported is None:
            self.graph_cache = CudaGraphCache(model, capture_cuda_graph)
        self.settings = dict(settings or {})

    def _why_no_cuda_graphs(self, inner: Any) -> str | None:
        if not isinstance(inner, VisionLanguageModel):
            return "a model in the LLaVA layout does not support it"
        if getattr(inner, "hf_quantizer", None) is not None:
            return "the language model is quantised"
        return None if self.device.type == "cuda" else f"the model is on {self.device.type}"

    @property
    def description(self) -> Description:
        return Description("checkpoint", {**self.settings, **self.policy.settings()})

    def encode(self, request: Request) -> Prompt:
        """The prompt of a request. Raises EncodingError or ImageError."""
        ids = self.processor.prompt(self.policy.messages(request), len(request.images))
        if len(ids) > self.processor.max_length:
            raise EncodingError(f"the prompt has {len(ids)} tokens, at most {self.processor.max_length} (model.max_length) are allowed")
        text = self.processor.readable(ids)
        if not request.images:
            return Prompt(ids, text)
        pixels = self.processor.pixels([load_image(image) for image in request.images])
        return Prompt(ids, text, {"pixel_values": pixels}, ids.count(self.processor.image_token_id))
