"""A model of any family in this process, as an answerer. Prompts are built by the same function as in training.

In: requests. Out: one Answer per request, in batches; or the pieces of an answer as they are generated.
"""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from answering.decoding.beam_search import GeneratedSequence, beam_search
from answering.decoding.candidates import Generation, merge
from answering.decoding.cuda_graphs import CudaGraphCache, capture_cuda_graph
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.kv_cache import PromptBatch, prompt_cache
from answering.decoding.sampling import DecodingStep, collect, decode_steps, sampling_noise
from answering.decoding.stop_strings import IncrementalDetokenizer, cut_before
from answering.prompts import PromptPolicy
from answering.protocol import Answer, Decoding, Description, FinishReason, Request
from answering.request_images import load_image, resize_to_max_side
from answering.rerank.self_evaluation import NO_WORDS, YES_WORDS, self_evaluation_request
from dataset.loading.encoded_sample import EncodingError
from errors import TesseraError, UsageError
from model.kernels.varlen_attention import use_packed_attention
from model.param_groups import unwrapped
from model.processors.sample_processor import Prompt, SampleProcessor
from model.siglip_qwen.modeling import VisionLanguageModel


class FamilyAnswerer:
    """Answers with a vision-language model of a family: decoder-only, or with a method `encode_prompt` (see answering.decoding.kv_cache).

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
        inner = unwrapped(model)
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.policy = policy or PromptPolicy.of_checkpoint(processor.prompts)
        self.end_ids = tuple(dict.fromkeys(processor.end_ids(inner)))
        self.settings, self.kind, self.max_image_side = dict(settings or {}), kind, max_image_side
        if isinstance(inner, VisionLanguageModel):
            use_packed_attention(inner.model.language_model)
        self.cuda_graphs_unsupported = self._why_no_cuda_graphs(inner)
        """Why the model cannot use CUDA graphs; None if it can."""
        self.graph_cache = CudaGraphCache(model, capture_cuda_graph) if self.cuda_graphs_unsupported is None else None

    def _why_no_cuda_graphs(self, inner: Any) -> str | None:
        if not isinstance(inner, VisionLanguageModel):
            return f"{type(inner).__name__} does not support it"
        if getattr(inner, "hf_quantizer", None) is not None:
            return "the language model is quantised"
        return None if self.device.type == "cuda" else f"the model is on {self.device.type}"

    @property
    def description(self) -> Description:
        return Description(self.kind, {**self.settings, **self.policy.settings()})

    @property
    def device(self) -> torch.device:
        """The device of the prompts: the first accelerator of a model that is split over several devices."""
        device_map = getattr(self.model, "hf_device_map", None) or {"": self.model.device}
        return torch.device(next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu"))

    def encode(self, request: Request) -> Prompt:
        """The prompt of a request under the policy. Raises EncodingError or ImageError."""
        images = [load_image(image) for image in request.images]
        if self.max_image_side is not None:
            images = [resize_to_max_side(image, self.max_image_side) for image in images]
        return self.processor.prompt_with_images(self.policy.messages(request), images, request.task)

    def encode_with_room(self, request: Request, decoding: Decoding) -> Prompt:
        """The prompt of a request. Raises TesseraError as `encode`, and when the answer may need more positions than the model has."""
        prompt, limit = self.encode(request), self.processor.max_positions
        if limit is not None and len(prompt.ids) + decoding.max_new_tokens > limit:
            raise EncodingError(
                f"the prompt has {len(prompt.ids)} tokens and its answer up to {decoding.max_new_tokens}, the model takes at most {limit}"
            )
        return prompt

    def answer(self, requests: Sequence[Request], decoding: Decoding, cancelled: Callable[[int], bool] | None = None) -> list[Answer]:
        """One Answer per request, in the order of the requests; an invalid request gets an Answer with an error.

        cancelled: called with the index of a request; a cancelled request leaves its batch and gets an error. Raises TesseraError if a
        batch of several questions does not fit into memory.
        """
        answers: dict[int, Answer] = {}
        order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
        batches = [order[start : start + decoding.batch_size] for start in range(0, len(order), decoding.batch_size)]
        with eval_mode(self.model), ThreadPoolExecutor(1) as reader:
            encoded = self._encode_batch(requests, batches[0] if batches else [], decoding)
            for next_indices in [*batches[1:], []]:
                # The next batch's images are read while the model runs this one.
                read = reader.submit(self._encode_batch, requests, next_indices, decoding)
                prompts = {i: prompt for i, prompt in encoded.items() if isinstance(prompt, Prompt)}
                answers |= {i: Answer(requests[i].request_id, error=str(e)) for i, e in encoded.items() if isinstance(e, TesseraError)}
                try:
                    generated = self._generate(requests, prompts, decoding, cancelled)
                except torch.OutOfMemoryError as error:
                    message = _out_of_memory(prompts.values(), decoding)
                    if len(prompts) > 1:
                        raise TesseraError(message) from error
                    # A batch of one cannot be smaller; other questions may be shorter.
                    answers |= {i: Answer(requests[i].request_id, error=message, prompt=prompts[i].text) for i in prompts}
                    generated = {}
                # Wait before decoding the answers: a tokenizer is not thread-safe.
                encoded = read.result()
                for i, sequences in generated.items():
                    if cancelled is not None and cancelled(i):
                        answers[i] = Answer(requests[i].request_id, error="the request was cancelled", prompt=prompts[i].text)
                    else:
                        answers[i] = self._answer(requests[i], prompts[i], sequences, decoding)
        return [answers[i] for i in range(len(requests))]

    def _encode_batch(self, requests: Sequence[Request], batch: Sequence[int], decoding: Decoding) -> dict[int, Prompt | TesseraError]:
        """The prompt of each request of a batch, or the error why it is invalid, by the index of the request."""
        encoded: dict[int, Prompt | TesseraError] = {}
        for i in batch:
            try:
                encoded[i] = self.encode_with_room(requests[i], decoding)
            except TesseraError as error:
                encoded[i] = error
        return encoded

    def _generate(
        self, requests: Sequence[Request], prompts: dict[int, Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None
    ) -> dict[int, list[GeneratedSequence]]:
        """The sequences of the requests that have a prompt, by the index of the request."""
        if not prompts:
            return {}
        rows = list(prompts)
        row_cancelled = None if cancelled is None else lambda row: cancelled(rows[row])
        generated = self.generate([requests[i] for i in rows], list(prompts.values()), decoding, row_cancelled)
        return dict(zip(rows, generated, strict=True))

    def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, FinishReason]:
        """Pieces of the greedy answer (or of the first sample, with `strategy: sample`) before cleaning; joined, its raw text.

        Returns why the answer ended. Raises TesseraError if the request is invalid.
        """
        with eval_mode(self.model):
            text = IncrementalDetokenizer(self.text, decoding.stop)
            for step in self.decode_steps([request], [self.encode_with_room(request, decoding)], 1, decoding):
                yield from filter(None, [text.add(int(step.tokens[0]))])
            yield from filter(None, [text.flush()])
        return self._finish_reason(text.ids, decoding)

    def decode_steps(
        self,
        requests: Sequence[Request],
        prompts: Sequence[Prompt],
        k: int,
        decoding: Decoding,
        cancelled: Callable[[int], bool] | None = None,
        graph_cache: CudaGraphCache | None = None,
    ) -> Iterator[DecodingStep]:
        """The k samples of each request with `strategy: sample`, else (k = 1) its greedy answer; the rest as of `sampling.decode_steps`."""
        batch = self.collate(prompts)
        uniform = sampling_noise(requests, k, decoding).to(batch.input_ids.device) if decoding.strategy == "sample" else None
        return decode_steps(self.model, batch, k, self.rules(decoding), uniform, cancelled, graph_cache)

    def rules(self, decoding: Decoding) -> DecodingRules:
        """The rules of decoding settings for this model."""
        return DecodingRules.from_config(decoding, self.end_ids, self.text)

    def collate(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """A left-padded batch of prompts on the model's device."""
        device = self.device
        longest = max(len(prompt.ids) for prompt in prompts)
        padding = [longest - len(prompt.ids) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * n + prompt.ids for n, prompt in zip(padding, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding], device=device)
        names = dict.fromkeys(name for prompt in prompts for name in prompt.images)
        images = {name: torch.cat([p.images[name] for p in prompts if name in p.images]).to(device) for name in names}
        return PromptBatch(ids, mask, self.processor.positions(unwrapped(self.model), ids, mask, images), images)

    def generate(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None = None
    ) -> list[list[GeneratedSequence]]:
        """Generate one batch: for each prompt k sequences, or one with `strategy: greedy`."""
        graph_cache = self._graph_cache(decoding)
        if decoding.strategy == "beam" and decoding.num_candidates > 1:
            return beam_search(self.model, self.collate(prompts), decoding.num_candidates, self.rules(decoding), cancelled, graph_cache)
        k = decoding.num_candidates if decoding.strategy == "sample" else 1
        return collect(self.decode_steps(requests, prompts, k, decoding, cancelled, graph_cache), len(prompts), k)

    @property
    def cuda_graphs_error(self) -> str | None:
        """Why steps are not replayed as CUDA graphs although they should be; None if nothing failed."""
        return None if self.graph_cache is None else self.graph_cache.disabled_reason

    def _graph_cache(self, decoding: Decoding) -> CudaGraphCache | None:
        """Replays decoding steps, if it can. Raises UsageError if decoding.cuda_graphs is true and the model does not support it."""
        # Autocast caches casted copies of weights, which a captured graph must not refer to.
        reason = "the model runs under autocast" if torch.is_autocast_enabled(self.device.type) else self.cuda_graphs_unsupported
        if reason is None and self.graph_cache is not None:
            return self.graph_cache.if_enabled(decoding.cuda_graphs)
        if decoding.cuda_graphs is True:
            raise UsageError(f"decoding.cuda_graphs: true, but {reason}; set it to auto or false")
        return None

    def _answer(self, request: Request, prompt: Prompt, generated: Sequence[GeneratedSequence], decoding: Decoding) -> Answer:
        possible = [sequence for sequence in generated if sequence.log_prob != -math.inf]
        if not all(math.isfinite(sequence.log_prob) for sequence in possible):
            return Answer(request.request_id, error="the model's probabilities are not finite numbers", prompt=prompt.text)
        if not possible:
            return Answer(request.request_id, error="no answer is possible under these decoding settings", prompt=prompt.text)
        generations = [self.read(sequence, request, decoding.stop) for sequence in possible]
        candidates = merge(generations, decoding.length_penalty if decoding.strategy == "beam" else 1.0)
        reasons = {g.raw: self._finish_reason(s.token_ids, decoding) for g, s in zip(generations, possible, strict=True)}
        finish_reasons = tuple(reasons[candidate.raw] for candidate in candidates)
        return Answer(request.request_id, candidates, None, prompt.text, prompt.visual_tokens, finish_reasons)

    def _finish_reason(self, token_ids: Sequence[int], decoding: Decoding) -> FinishReason:
        """Why a generated sequence ended: at an end token or a stop text, or at the largest number of tokens."""
        ended = len(token_ids) < decoding.max_new_tokens or token_ids[-1] in self.end_ids
        return "stop" if ended or any(stop in self.text(token_ids) for stop in decoding.stop) else "length"

    def read(self, generated: GeneratedSequence, request: Request, stop: Sequence[str] = ()) -> Generation:
        """Generated ids as text before the first stop text, cleaned by the policy."""
        raw = cut_before(self.text(generated.token_ids), stop).strip()
        return Generation(self.policy.clean(raw, request), raw, generated.token_ids, generated.log_prob, generated.penalised_log_prob)

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated token ids as they are, with their whitespace, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """P(yes) / (P(yes) + P(no)) of the first token of the model's reply, as `SelfEvaluator.judge`; batch_size: texts per batch."""
        asked = [self_evaluation_request(request, text) for request, group in zip(requests, texts, strict=True) for text in group]
        batches = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
        with eval_mode(self.model):
            values = iter([value for batch in batches for value in self._yes_probabilities(batch)])
        groups = [list(islice(values, len(group))) for group in texts]
        return [None if None in group else [value for value in group if value is not None] for group in groups]

    @torch.no_grad()
    def _yes_probabilities(self, requests: Sequence[Request]) -> list[float | None]:
        """P(yes) of each request made by `self_evaluation_request`; None if its prompt cannot be built."""
        prompts = {}
        for i, request in enumerate(requests):
            try:
                prompts[i] = self.encode(request)
            except TesseraError:
                # The prompt is longer than that of the answer and may not fit: the answer is then not evaluated.
                continue
        probabilities: list[float | None] = [None] * len(requests)
        if not prompts:
            return probabilities
        batch = self.collate(list(prompts.values()))
        log_probs = torch.log_softmax(prompt_cache(self.model, batch, 1, 1).logits[:, -1], dim=-1).cpu()
        for i, row in zip(prompts, log_probs, strict=True):
            yes, no = (row[self._first_token_ids(words[requests[i].language])].logsumexp(0) for words in (YES_WORDS, NO_WORDS))
            probabilities[i] = float(torch.sigmoid(yes - no))
        return probabilities

    def _first_token_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of the first tokens of the words, without duplicates."""
        return sorted({self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})


def _out_of_memory(prompts: Collection[Prompt], decoding: Decoding) -> str:
    return (
        f"out of memory with {len(prompts)} questions of up to {max(len(prompt.ids) for prompt in prompts)} tokens and "
        f"{decoding.num_candidates} candidates each; lower decoding.batch_size (now {decoding.batch_size}) or decoding.num_candidates"
    )


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and restore the mode of each afterwards, so that it can be used during training."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _sort_key(request: Request) -> tuple[int, int]:
    """Sort by the number of images, which take more tokens than any text, then by the length of the text."""
    return len(request.images), sum(len(message.content) for message in request.messages)
