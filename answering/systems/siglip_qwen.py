"""Our own model as an answerer: prompts are built by the function that built the training's."""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from answering.decoding.cuda_graphs import Frames, record_on_cuda
from answering.prompts import PromptPolicy
from answering.protocol import Description, Request
from answering.request_images import opened
from answering.rerank.self_evaluation import SelfJudging
from answering.systems.local_model import Prompt
from dataset.loading.encoded_sample import EncodingError
from model.kernels.varlen_attention import use_attention
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor


class CheckpointAnswerer(SelfJudging):
    """Answers with a VisionLanguageModel.

    settings: what the description says of the model, such as its folder and quantisation.
    """

    def __init__(self, model: Any, processor: Processor, policy: PromptPolicy | None = None, settings: Mapping[str, object] | None = None):
        super().__init__(model, processor.tokenizer, policy or PromptPolicy(), [processor.end_id, int(processor.tokenizer.eos_token_id)])
        self.processor = processor
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(inner, VisionLanguageModel):
            use_attention(inner.model.language_model)
        self.frames_lack = self._what_frames_lack(inner)
        if self.frames_lack is None:
            self.frames = Frames(model, record_on_cuda)
        self.settings = dict(settings or {})

    def _what_frames_lack(self, inner: Any) -> str | None:
        if not isinstance(inner, VisionLanguageModel):
            return "a model in the LLaVA layout has none"
        if getattr(inner, "hf_quantizer", None) is not None:
            return "the language model is quantised"
        return None if self.device.type == "cuda" else f"the model is on {self.device.type}"

    @property
    def description(self) -> Description:
        return Description("checkpoint", {**self.settings, **self.policy.settings()})

    def encode(self, request: Request) -> Prompt:
        """Raises EncodingError or PictureError."""
        ids = self.processor.prompt(self.policy.messages(request), len(request.pictures))
        if len(ids) > self.processor.max_tokens:
            raise EncodingError(f"the prompt has {len(ids)} tokens, at most {self.processor.max_tokens} (model.max_tokens) are allowed")
        text = self.processor.readable(ids)
        if not request.pictures:
            return Prompt(ids, text)
        return Prompt(ids, text, {"pixel_values": self.processor.pixels([opened(picture) for picture in request.pictures])})
