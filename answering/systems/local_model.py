"""The common part of answerers that run a model in this process: batching, error handling, streaming.

In: requests. Out: one Answer per request. A subclass defines how a request becomes a prompt, and its position ids.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from answering.decoding.beam_search import GeneratedSequence, PromptBatch, beam_search
from answering.decoding.candidates import Generation, merge
from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.sampling import collect, decode_steps
from answering.decoding.stop_strings import cut_before, without_beginning_of
from answering.prompts import PromptPolicy
from answering.protocol import Answer, Decoding, Description, FinishReason, Request
from dataset.loading.encoded_sample import EncodingError
from errors import TesseraError, UsageError
from model.processors.sample_processor import Prompt as Prompt


class OutOfMemoryError(TesseraError):
    """A batch does not fit into device memory."""


class LocalAnswerer(ABC):
    """Answers with a model in this process. The model is decoder-only, or has a method `encode_prompt` (see answering.decoding.kv_cache).

    Args:
        model: the model.
        tokenizer: decodes; it has a padding token.
        policy: prompt suffixes and answer cleaning.
        end_ids: token ids that end an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, policy: PromptPolicy, end_ids: Sequence[int]):
        self.model, self.tokenizer, self.policy = model, tokenizer, policy
        self.end_ids = tuple(dict.fromkeys(end_ids))
        self.graph_cache: CudaGraphCache | None = None
        """Replays decoding steps as CUDA graphs; None if the model does not support it."""
        self.max_positions: int | None = None
        """Most tokens of a prompt with its answer; None where the model has no such limit."""
        self.cuda_graphs_unsupported: str | None = None
        """Why the model cannot use CUDA graphs; set by the kinds of systems that may use them."""

    @property
    @abstractmethod
    def description(self) -> Description: ...

    @property
    def device(self) -> torch.device:
        """The device of the prompts: the first accelerator of a model that is split over several devices."""
        device_map = getattr(self.model, "hf_device_map", None) or {"": self.model.device}
        return torch.device(next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu"))

    @abstractmethod
    def encode(self, request: Request) -> Prompt:
        """The prompt of a request under the policy. Raises TesseraError if the request is invalid."""

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids [n, t] of left-padded prompts, counted from the first real token."""
        del input_ids, images
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def answer(self, requests: Sequence[Request], decoding: Decoding, cancelled: Callable[[int], bool] | None = None) -> list[Answer]:
        """One Answer per request, in the order of the requests; an invalid request gets an Answer with an error.

        Args:
            requests: the questions.
            decoding: how candidates are generated.
            cancelled: called with the index of a request; a cancelled request leaves its batch and gets an error.

        Raises:
            OutOfMemoryError: a batch of several questions does not fit into memory.
        """
        answers: dict[int, Answer] = {}
        order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
        batches = [order[start : start + decoding.batch_size] for start in range(0, len(order), decoding.batch_size)]
        with eval_mode(self.model), ThreadPoolExecutor(1) as reader:
            next_batch = self._encode_batch(requests, batches[0], decoding) if batches else {}
            for next_indices in [*batches[1:], []]:
                encoded = next_batch
                # The next batch's images are read while the model runs this one.
                read = reader.submit(self._encode_batch, requests, next_indices, decoding) if next_indices else None
                prompts = {i: prompt for i, prompt in encoded.items() if isinstance(prompt, Prompt)}
                answers |= {i: Answer(requests[i].request_id, error=str(e)) for i, e in encoded.items() if isinstance(e, TesseraError)}
                is_cancelled = None if cancelled is None else partial(_cancelled_at_row, list(prompts), cancelled)
                try:
                    candidates = self._generate([requests[i] for i in prompts], list(prompts.values()), decoding, is_cancelled)
                except OutOfMemoryError as error:
                    if len(prompts) > 1:
                        raise
                    # A batch of one cannot be smaller; other questions may be shorter.
                    answers |= {i: Answer(requests[i].request_id, error=str(error), prompt=prompts[i].text) for i in prompts}
                    candidates, prompts = [], {}
                # Wait before decoding the answers: a tokenizer is not thread-safe.
                next_batch = read.result() if read is not None else {}
                for (i, prompt), generated in zip(prompts.items(), candidates, strict=True):
                    cancelled_answer = Answer(requests[i].request_id, error="the request was cancelled", prompt=prompt.text)
                    answers[i] = (
                        cancelled_answer
                        if cancelled is not None and cancelled(i)
                        else self._answer(requests[i], prompt, generated, decoding)
                    )
        return [answers[i] for i in range(len(requests))]

    def encode_with_room(self, request: Request, decoding: Decoding) -> Prompt:
        """The prompt of a request. Raises TesseraError as `encode`, and when the answer may need more positions than the model has."""
        prompt = self.encode(request)
        if self.max_positions is not None and len(prompt.ids) + decoding.max_new_tokens > self.max_positions:
            raise EncodingError(
                f"the prompt has {len(prompt.ids)} tokens and its answer up to {decoding.max_new_tokens}, the model takes at most "
                f"{self.max_positions}"
            )
        return prompt

    def _encode_batch(self, requests: Sequence[Request], batch: Sequence[int], decoding: Decoding) -> dict[int, Prompt | TesseraError]:
        """The prompt of each request of a batch, or the error why it is invalid, by the index of the request."""
        encoded: dict[int, Prompt | TesseraError] = {}
        for i in batch:
            try:
                encoded[i] = self.encode_with_room(requests[i], decoding)
            except TesseraError as error:
                encoded[i] = error
        return encoded

    def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, FinishReason]:
        """Pieces of the greedy answer (or of the first sample, with `strategy: sample`) before cleaning; joined, its raw text.

        Returns why the answer ended. Raises TesseraError if the request is invalid.
        """
        with eval_mode(self.model):
            text = IncrementalDetokenizer(self.text, decoding.stop)
            for token in self.generate_tokens(request, self.encode_with_room(request, decoding), decoding):
                yield from filter(None, [text.add(token)])
            yield from filter(None, [text.flush()])
        return self._finish_reason(text.ids, decoding)

    def generate_tokens(self, request: Request, prompt: Prompt, decoding: Decoding) -> Iterator[int]:
        """Token ids of the greedy answer (or of the first sample, with `strategy: sample`) as they are generated."""
        batch = self.collate([prompt])
        uniform_samples = sampling_noise([request], 1, decoding).to(batch.input_ids.device) if decoding.strategy == "sample" else None
        for step in decode_steps(self.model, batch, 1, self.rules(decoding), uniform_samples):
            yield int(step.tokens[0])

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
        return PromptBatch(ids, mask, self.positions(ids, mask, images), images)

    def _generate(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None = None
    ) -> list[list[GeneratedSequence]]:
        if not prompts:
            return []
        try:
            return self.generate(requests, prompts, decoding, cancelled)
        except torch.OutOfMemoryError as error:
            longest = max(len(prompt.ids) for prompt in prompts)
            raise OutOfMemoryError(
                f"out of memory with {len(prompts)} questions of up to {longest} tokens and {decoding.num_candidates} candidates each; "
                f"lower decoding.batch_size (now {decoding.batch_size}) or decoding.num_candidates"
            ) from error

    def generate(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None = None
    ) -> list[list[GeneratedSequence]]:
        """Generate one batch: for each prompt k sequences, or one with `strategy: greedy`."""
        batch = self.collate(prompts)
        graph_cache = self._graph_cache(decoding)
        rules = self.rules(decoding)
        if decoding.strategy == "beam" and decoding.num_candidates > 1:
            return beam_search(self.model, batch, decoding.num_candidates, rules, cancelled, graph_cache)
        sampling = decoding.strategy == "sample"
        k = decoding.num_candidates if sampling else 1
        uniform_samples = sampling_noise(requests, k, decoding).to(batch.input_ids.device) if sampling else None
        return collect(decode_steps(self.model, batch, k, rules, uniform_samples, cancelled, graph_cache), len(prompts), k)

    @property
    def cuda_graphs_error(self) -> str | None:
        """Why steps are not replayed as CUDA graphs although they should be; None if nothing failed."""
        return None if self.graph_cache is None else self.graph_cache.disabled_reason

    def _graph_cache(self, decoding: Decoding) -> CudaGraphCache | None:
        """Replays decoding steps, if it can. Raises UsageError if decoding.cuda_graphs is true and the model does not support it."""
        # Autocast caches casted copies of weights, which a captured graph must not refer to.
        reason = "the model runs under autocast" if torch.is_autocast_enabled(self.device.type) else self.cuda_graphs_unsupported
        if reason is None:
            return None if self.graph_cache is None else self.graph_cache.if_enabled(decoding.cuda_graphs)
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
        length_penalty = decoding.length_penalty if decoding.strategy == "beam" else 1.0
        candidates = merge(generations, length_penalty)
        reasons = {g.raw: self._finish_reason(s.token_ids, decoding) for g, s in zip(generations, possible, strict=True)}
        return Answer(
            request.request_id,
            candidates,
            prompt=prompt.text,
            visual_tokens=prompt.visual_tokens,
            finish_reasons=tuple(reasons[candidate.raw] for candidate in candidates),
        )

    def _finish_reason(self, token_ids: Sequence[int], decoding: Decoding) -> FinishReason:
        """Why a generated sequence ended: at an end token or a stop text, or at the largest number of tokens."""
        ended = len(token_ids) < decoding.max_new_tokens or token_ids[-1] in self.end_ids
        return "stop" if ended or any(stop in self.text(token_ids) for stop in decoding.stop) else "length"

    def read(self, generated: GeneratedSequence, request: Request, stop: Sequence[str] = ()) -> Generation:
        """Generated ids as text before the first stop text, cleaned by the policy."""
        raw = self.decode(generated.token_ids, stop)
        return Generation(self.policy.clean(raw, request), raw, generated.token_ids, generated.log_prob, generated.penalised_log_prob)

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Text of generated token ids before the first stop text, without special tokens."""
        return cut_before(self.text(ids), stop).strip()

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated token ids as they are, with their whitespace, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(slots=True)
class IncrementalDetokenizer:
    """Turns token ids that arrive one by one into text.

    Args:
        text: text of token ids, with its whitespace.
        stop: texts before which the answer ends.
        ids: the tokens so far.
        num_emitted: number of characters returned so far.
    """

    text: Callable[[Sequence[int]], str]
    stop: Sequence[str] = ()
    ids: list[int] = field(default_factory=list)
    num_emitted: int = 0

    def add(self, token: int) -> str:
        """The text that one more token adds; empty while a character is incomplete or the text may become a stop text."""
        self.ids.append(token)
        # A character may span several tokens, and trailing whitespace is stripped if the answer ends here.
        whole = cut_before(self.text(self.ids), self.stop).strip().rstrip("\ufffd").rstrip()
        return self._emit(without_beginning_of(whole, self.stop).rstrip())

    def flush(self) -> str:
        """The text that was held back; call it after the last token."""
        return self._emit(cut_before(self.text(self.ids), self.stop).strip())

    def _emit(self, text: str) -> str:
        piece = text[self.num_emitted :]
        self.num_emitted += len(piece)
        return piece


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


def _cancelled_at_row(row_indices: Sequence[int], cancelled: Callable[[int], bool], row: int) -> bool:
    """Whether the request in a row of a batch was cancelled."""
    return cancelled(row_indices[row])


def _sort_key(request: Request) -> tuple[int, int]:
    """Sort by the number of images, which take more tokens than any text, then by the length of the text."""
    return len(request.images), sum(len(message.content) for message in request.messages)


def sampling_noise(requests: Sequence[Request], k: int, decoding: Decoding) -> torch.Tensor:
    """Uniform random numbers [len(requests) * k, max_new_tokens] in 0..1. They depend only on (seed, request id), not on the batch."""
    rows = []
    for request in requests:
        digest = hashlib.blake2b(f"{decoding.seed}\0{request.request_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        rows.append(torch.rand(k, decoding.max_new_tokens, dtype=torch.float64, generator=generator))
    return torch.cat(rows)
