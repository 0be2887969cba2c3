"""What the answerers that run a model in this process share: order, batches, errors, streaming.

In: requests. Out: an Answer each. A subclass says how one request becomes a prompt and where its tokens stand.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from answering.decoding.beam_search import GeneratedSequence, PromptBatch, beam_search
from answering.decoding.candidates import Generation, merge
from answering.decoding.cuda_graphs import CudaGraphCache
from answering.decoding.sampling import collect, decode_steps
from answering.prompts import PromptPolicy
from answering.protocol import Answer, Decoding, Description, Request
from errors import TesseraError, UsageError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the model reads it. `text` is the prompt for people; `pictures`: arguments of the forward pass whose
    first dimension can be joined over prompts."""

    ids: list[int]
    text: str
    images: dict[str, torch.Tensor] = field(default_factory=dict)


class OutOfMemoryError(TesseraError):
    """A batch does not fit into memory."""


class LocalAnswerer(ABC):
    """Answers with a model in this process; as it stands, with a decoder-only one.

    tokenizer: decodes, and has a padding token; end_ids: the tokens that end an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, policy: PromptPolicy, end_ids: Sequence[int]):
        self.model, self.tokenizer, self.policy = model, tokenizer, policy
        self.end_ids = tuple(dict.fromkeys(end_ids))
        self.graph_cache: CudaGraphCache | None = None
        """Where decoding steps are replayed from, in an answerer whose model allows it."""
        self.cuda_graphs_unsupported: str | None = None
        """What stands in the way of frames, in an answerer of a kind that may have them."""

    @property
    @abstractmethod
    def description(self) -> Description: ...

    @property
    def device(self) -> torch.device:
        """Where prompts go."""
        device: torch.device = self.model.device
        return device

    @abstractmethod
    def encode(self, request: Request) -> Prompt:
        """The prompt of a request under the policy. Raises TesseraError when it cannot be asked."""

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of padded prompts: [n, t], counted from the first real token."""
        del input_ids, images
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def answer(self, requests: Sequence[Request], decoding: Decoding, cancelled: Callable[[int], bool] | None = None) -> list[Answer]:
        """One Answer for each request, in their order; a request that cannot be asked becomes an Answer with an error.

        abandoned: asked with the place of a request whether nobody waits for it any more; it then leaves its batch, with an error.
        Raises OutOfMemoryError when a batch of several questions does not fit into memory.
        """
        answers: dict[int, Answer] = {}
        order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
        batches = [order[start : start + decoding.batch_size] for start in range(0, len(order), decoding.batch_size)]
        with eval_mode(self.model), ThreadPoolExecutor(1) as reader:
            next_batch = self._encode_batch(requests, batches[0]) if batches else {}
            for next_indices in [*batches[1:], []]:
                encoded = next_batch
                # The next batch's pictures are read while the model is busy with this one.
                read = reader.submit(self._encode_batch, requests, next_indices) if next_indices else None
                prompts = {i: prompt for i, prompt in encoded.items() if isinstance(prompt, Prompt)}
                answers |= {i: Answer(requests[i].request_id, error=str(e)) for i, e in encoded.items() if isinstance(e, TesseraError)}
                is_cancelled = None if cancelled is None else partial(_cancelled_at_row, list(prompts), cancelled)
                try:
                    candidates = self._generate([requests[i] for i in prompts], list(prompts.values()), decoding, is_cancelled)
                except OutOfMemoryError as error:
                    if len(prompts) > 1:
                        raise
                    # No smaller batch can be asked, and other questions may be shorter.
                    answers |= {i: Answer(requests[i].request_id, error=str(error), prompt=prompts[i].text) for i in prompts}
                    candidates, prompts = [], {}
                # Not beside what follows: a tokenizer serves one thread at a time.
                next_batch = read.result() if read is not None else {}
                for (i, prompt), generated in zip(prompts.items(), candidates, strict=True):
                    cancelled_answer = Answer(requests[i].request_id, error="nobody waits for it any more", prompt=prompt.text)
                    answers[i] = (
                        cancelled_answer if cancelled is not None and cancelled(i) else self._answer(requests[i], prompt, generated)
                    )
        return [answers[i] for i in range(len(requests))]

    def _encode_batch(self, requests: Sequence[Request], batch: Sequence[int]) -> dict[int, Prompt | TesseraError]:
        """The prompt of each request of a batch, or why it cannot be asked."""
        found: dict[int, Prompt | TesseraError] = {}
        for i in batch:
            try:
                found[i] = self.encode(requests[i])
            except TesseraError as error:
                found[i] = error
        return found

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """Pieces of the greedy answer (of the first sample for `mode: sample`) before cleaning; joined, its raw text.

        Raises TesseraError when the request cannot be asked.
        """
        with eval_mode(self.model):
            text = IncrementalDetokenizer(self.decode)
            for token in self.generate_tokens(request, self.encode(request), decoding):
                yield from filter(None, [text.add(token)])
            yield from filter(None, [text.flush()])

    def generate_tokens(self, request: Request, prompt: Prompt, decoding: Decoding) -> Iterator[int]:
        """Tokens of the greedy answer (of the first sample for `mode: sample`) as they are generated."""
        batch = self.collate([prompt])
        uniform_samples = sampling_noise([request], 1, decoding).to(batch.input_ids.device) if decoding.strategy == "sample" else None
        for step in decode_steps(self.model, batch, 1, decoding.max_new_tokens, self.end_ids, decoding.temperature, uniform_samples):
            yield int(step.tokens[0])

    def collate(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Prompts padded on the left, on the model's device."""
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
                f"out of memory with {len(prompts)} questions of up to {longest} tokens and "
                f"{decoding.num_candidates} candidates each; lower decoding.batch_size (now {decoding.batch_size}) or decoding.num_candidates"
            ) from error

    def generate(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None = None
    ) -> list[list[GeneratedSequence]]:
        """What the model says to one batch: for each prompt k sequences, or one where `mode` is greedy."""
        batch = self.collate(prompts)
        graph_cache = self._graph_cache(decoding)
        if decoding.strategy == "beam" and decoding.num_candidates > 1:
            return beam_search(
                self.model, batch, decoding.num_candidates, decoding.max_new_tokens, self.end_ids, cancelled, graph_cache=graph_cache
            )
        sampling = decoding.strategy == "sample"
        k = decoding.num_candidates if sampling else 1
        uniform_samples = sampling_noise(requests, k, decoding).to(batch.input_ids.device) if sampling else None
        decoding_steps = decode_steps(
            self.model,
            batch,
            k,
            decoding.max_new_tokens,
            self.end_ids,
            decoding.temperature,
            uniform_samples,
            cancelled,
            graph_cache=graph_cache,
        )
        return collect(decoding_steps, len(prompts), k)

    @property
    def cuda_graphs_error(self) -> str | None:
        """Why steps that were to be replayed as CUDA graphs are not; None where nothing went wrong."""
        return None if self.graph_cache is None else self.graph_cache.disabled_reason

    def _graph_cache(self, decoding: Decoding) -> CudaGraphCache | None:
        """Where steps are replayed from. Raises UsageError where decoding.cuda_graphs is true and there can be no frames."""
        # Autocast keeps copies of weights, which a recording must not hold on to.
        reason = "the model runs under autocast" if torch.is_autocast_enabled(self.device.type) else self.cuda_graphs_unsupported
        if reason is None:
            return None if self.graph_cache is None else self.graph_cache.if_enabled(decoding.cuda_graphs)
        if decoding.cuda_graphs is True:
            raise UsageError(f"decoding.cuda_graphs: true, but {reason}; set it to auto or false")
        return None

    def _answer(self, request: Request, prompt: Prompt, generated: Sequence[GeneratedSequence]) -> Answer:
        if not all(math.isfinite(one.log_prob) for one in generated):
            return Answer(request.request_id, error="the model's probabilities are not finite numbers", prompt=prompt.text)
        return Answer(request.request_id, merge([self.read(one, request) for one in generated]), prompt=prompt.text)

    def read(self, generated: GeneratedSequence, request: Request) -> Generation:
        """Generated ids as text, cleaned by the policy."""
        raw = self.decode(generated.token_ids)
        return Generation(self.policy.clean(raw, request), raw, generated.token_ids, generated.log_prob)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


@dataclass(slots=True)
class IncrementalDetokenizer:
    """The text of tokens that come one by one. `said`: its length so far, in characters."""

    decode: Callable[[Sequence[int]], str]
    ids: list[int] = field(default_factory=list)
    num_emitted: int = 0

    def add(self, token: int) -> str:
        """What one more token adds, empty while a character is not whole."""
        self.ids.append(token)
        # A character may take several tokens, and blanks at the end may turn out to be the end.
        return self._emit(self.decode(self.ids).rstrip("\ufffd").rstrip())

    def flush(self) -> str:
        """What was held back, once there are no more tokens."""
        return self._emit(self.decode(self.ids))

    def _emit(self, text: str) -> str:
        piece = text[self.num_emitted :]
        self.num_emitted += len(piece)
        return piece


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module is back in the mode it was in, so that a training run can be asked."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _cancelled_at_row(row_indices: Sequence[int], cancelled: Callable[[int], bool], row: int) -> bool:
    """Whether the request in a row of a batch was abandoned."""
    return cancelled(row_indices[row])


def _sort_key(request: Request) -> tuple[int, int]:
    """Pictures weigh more than any text; within the same number the text counts."""
    return len(request.images), sum(len(message.content) for message in request.messages)


def sampling_noise(requests: Sequence[Request], k: int, decoding: Decoding) -> torch.Tensor:
    """Numbers [len(requests) * k, max_new_tokens] in 0..1 drawn by (seed, request id): the same in any batch."""
    rows = []
    for request in requests:
        digest = hashlib.blake2b(f"{decoding.seed}\0{request.request_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        rows.append(torch.rand(k, decoding.max_new_tokens, dtype=torch.float64, generator=generator))
    return torch.cat(rows)
