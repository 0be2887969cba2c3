"""What the answerers that run a model in this process share: order, batches, errors, streaming.

In: requests. Out: an Answer each. A subclass says how one request becomes a prompt and where its tokens stand.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from answering.candidates import Generation, merge
from answering.generation import Generated, PromptBatch, beam_search, collect, steps
from answering.prompting import PromptPolicy
from answering.protocol import Answer, Decoding, Description, Picture, Request
from dataset.pictures import open_picture, to_rgb
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the model reads it. `text` is the prompt for people; `pictures`: arguments of the forward pass whose
    first dimension can be joined over prompts."""

    ids: list[int]
    text: str
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)


class LocalAnswerer(ABC):
    """Answers with a decoder-only model.

    tokenizer: decodes, and has a padding token; end_ids: the tokens that end an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, policy: PromptPolicy, end_ids: Sequence[int]):
        self.model, self.tokenizer, self.policy = model, tokenizer, policy
        self.end_ids = tuple(dict.fromkeys(end_ids))

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

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pictures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of padded prompts: [n, t], counted from the first real token."""
        del input_ids, pictures
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """One Answer for each request, in their order; a request that cannot be asked becomes an Answer with an error.

        Raises TesseraError when a batch does not fit into memory.
        """
        answers: dict[int, Answer] = {}
        order = sorted(range(len(requests)), key=lambda i: _size(requests[i]))
        with evaluating(self.model):
            for start in range(0, len(order), decoding.batch_size):
                prompts: dict[int, Prompt] = {}
                for i in order[start : start + decoding.batch_size]:
                    try:
                        prompts[i] = self.encode(requests[i])
                    except TesseraError as error:
                        answers[i] = Answer(requests[i].request_id, error=str(error))
                candidates = self._generate([requests[i] for i in prompts], list(prompts.values()), decoding)
                for (i, prompt), generated in zip(prompts.items(), candidates, strict=True):
                    answers[i] = self._answer(requests[i], prompt, generated)
        return [answers[i] for i in range(len(requests))]

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """Pieces of the greedy answer (of the first sample for `mode: sample`) before cleaning; joined, its raw text.

        Raises TesseraError when the request cannot be asked.
        """
        sampling = decoding.mode == "sample"
        with evaluating(self.model):
            batch = self.collate([self.encode(request)])
            uniform = _uniform([request], 1, decoding).to(batch.input_ids.device) if sampling else None
            growing = steps(self.model, batch, 1, decoding.max_new_tokens, self.end_ids, decoding.temperature, uniform)
            ids, said = [], ""
            for step in growing:
                ids.append(int(step.tokens[0]))
                # A character may take several tokens, and blanks at the end may turn out to be the end.
                text = self._decode(ids).rstrip("\ufffd").rstrip()
                if len(text) > len(said):
                    yield text[len(said) :]
                    said = text
            yield from filter(None, [self._decode(ids)[len(said) :]])

    def collate(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Prompts padded on the left, on the model's device."""
        device = self.device
        longest = max(len(prompt.ids) for prompt in prompts)
        padding = [longest - len(prompt.ids) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * n + prompt.ids for n, prompt in zip(padding, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding], device=device)
        names = dict.fromkeys(name for prompt in prompts for name in prompt.pictures)
        pictures = {name: torch.cat([p.pictures[name] for p in prompts if name in p.pictures]).to(device) for name in names}
        return PromptBatch(ids, mask, self.positions(ids, mask, pictures), pictures)

    def _generate(self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding) -> list[list[Generated]]:
        if not prompts:
            return []
        batch = self.collate(prompts)
        try:
            if decoding.mode == "beam" and decoding.k > 1:
                return beam_search(self.model, batch, decoding.k, decoding.max_new_tokens, self.end_ids)
            sampling = decoding.mode == "sample"
            k = decoding.k if sampling else 1
            uniform = _uniform(requests, k, decoding).to(batch.input_ids.device) if sampling else None
            growing = steps(self.model, batch, k, decoding.max_new_tokens, self.end_ids, decoding.temperature, uniform)
            return collect(growing, len(prompts), k)
        except torch.OutOfMemoryError as error:
            raise TesseraError(
                f"out of memory with {len(prompts)} questions of up to {batch.input_ids.shape[1]} tokens and "
                f"{decoding.k} candidates each; lower decoding.batch_size (now {decoding.batch_size}) or decoding.k"
            ) from error

    def _answer(self, request: Request, prompt: Prompt, generated: Sequence[Generated]) -> Answer:
        if not all(math.isfinite(one.log_prob) for one in generated):
            return Answer(request.request_id, error="the model's probabilities are not finite numbers", prompt=prompt.text)
        return Answer(request.request_id, merge([self.read(one, request) for one in generated]), prompt=prompt.text)

    def read(self, generated: Generated, request: Request) -> Generation:
        """Generated ids as text, cleaned by the policy."""
        raw = self._decode(generated.token_ids)
        return Generation(self.policy.clean(raw, request), raw, generated.token_ids, generated.log_prob)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def opened(picture: Picture) -> Image.Image:
    """The picture as upright RGB. Raises PictureError."""
    return open_picture(picture) if isinstance(picture, Path) else to_rgb(picture)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module is back in the mode it was in, so that a training run can be asked."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _size(request: Request) -> tuple[int, int]:
    """Pictures weigh more than any text; within the same number the text counts."""
    return len(request.pictures), sum(len(message.content) for message in request.messages)


def _uniform(requests: Sequence[Request], k: int, decoding: Decoding) -> torch.Tensor:
    """Numbers [len(requests) * k, max_new_tokens] in 0..1 drawn by (seed, request id): the same in any batch."""
    rows = []
    for request in requests:
        digest = hashlib.blake2b(f"{decoding.seed}\0{request.request_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        rows.append(torch.rand(k, decoding.max_new_tokens, dtype=torch.float64, generator=generator))
    return torch.cat(rows)
