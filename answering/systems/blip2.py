"""BLIP-2 as an answerer: zero-shot, quantised or with a LoRA adapter; OPT or Flan-T5 as its language model.

The query embeddings of the image and the text embeddings are concatenated here and not located by a placeholder id: a folder whose
`image_token_index` is not the `<image>` of its tokenizer would otherwise be asked without the image.

Shapes: N prompts, Q queries per image, T tokens of the longest text, D hidden size of the language model.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoTokenizer, Blip2ForConditionalGeneration, GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation import BaseStreamer

from answering.config import Blip2System
from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.sampling import sample_tokens
from answering.prompts import PromptPolicy
from answering.protocol import Decoding, Description, Request
from answering.request_images import load_image
from answering.systems.local_model import LocalAnswerer, Prompt, sampling_noise
from dataset.loading.encoded_sample import EncodingError, check_messages
from dataset.sample import IMAGE_PLACEHOLDER
from errors import UsageError, loading
from model.kernels.device_capability import default_dtype
from model.quantization import disable_avx512bf16, quantization_config
from visual.hub_name import pretrained
from visual.image_processor import load_image_processor

NOT_QUANTISED = ["vision_model", "qformer", "language_projection", "language_model.lm_head"]
"""Modules that stay unquantised: all but the layers of the language model."""


class Blip2Answerer(LocalAnswerer):
    """Answers with a Blip2ForConditionalGeneration. Its language model continues (OPT) or answers (Flan-T5) a prompt."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, system: Blip2System):
        super().__init__(model, tokenizer, PromptPolicy.from_config(system), _end_ids(model, tokenizer))
        self.image_processor, self.system = image_processor, system
        text = model.config.text_config
        self.is_encoder_decoder = bool(text.is_encoder_decoder)
        # OPT has learned position embeddings; T5 uses relative positions and takes any length.
        self.max_prompt_tokens = None if self.is_encoder_decoder else int(text.max_position_embeddings) - model.config.num_query_tokens
        # Drop the folder's other generation settings: a penalty or a minimum length would change every probability.
        model.language_model.generation_config = GenerationConfig(
            eos_token_id=list(self.end_ids),
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=text.decoder_start_token_id if self.is_encoder_decoder else None,
        )

    @property
    def description(self) -> Description:
        system = self.system
        names = ("path", "quantization", "adapter", "question_prompt", "conversation_prompt", "caption_prompt")
        return Description(system.kind, {**{name: getattr(system, name) for name in names}, **self.policy.settings()})

    def encode(self, request: Request) -> Prompt:
        """The prompt of a request. Raises EncodingError or ImageError."""
        if len(request.images) != 1:
            raise EncodingError(f"BLIP-2 takes one image per question, this one has {len(request.images)}")
        check_messages(request.messages, 1)
        # Control tokens in a user's text are tokenised as plain text.
        ids = list(self.tokenizer(self._text(request), split_special_tokens=True).input_ids)
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            raise EncodingError(f"the prompt has {len(ids)} tokens, the model takes at most {self.max_prompt_tokens} next to an image")
        pixels = self.image_processor(images=[load_image(request.images[0])], return_tensors="pt")["pixel_values"]
        text = IMAGE_PLACEHOLDER + str(self.tokenizer.decode(ids))
        return Prompt(ids, text, {"pixel_values": pixels}, int(self.model.config.num_query_tokens))

    def _text(self, request: Request) -> str:
        """The prompt text of a request. Earlier turns come first, as in the conversations of the paper (arXiv:2301.12597)."""
        if request.task == "caption":
            return self.system.caption_prompt
        template = self.system.question_prompt if request.task == "vqa" else self.system.conversation_prompt
        parts = []
        for message in self.policy.messages(request):
            text = " ".join(message.content.replace(IMAGE_PLACEHOLDER, " ").split())
            parts.append(template.replace("{}", text) if message.role == "user" else text)
        return " ".join(parts)

    def generate(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], decoding: Decoding, cancelled: Callable[[int], bool] | None = None
    ) -> list[list[GeneratedSequence]]:
        """Generate with transformers' own search, which supports both kinds of language model and cannot be cancelled.

        The samples of a request do not depend on its batch.
        """
        del cancelled
        k = 1 if decoding.strategy == "greedy" else decoding.num_candidates
        uniform_samples = sampling_noise(requests, k, decoding) if decoding.strategy == "sample" else None
        flat = self._run(prompts, decoding, k, uniform_samples)
        return [flat[i : i + k] for i in range(0, len(flat), k)]

    def generate_tokens(self, request: Request, prompt: Prompt, decoding: Decoding) -> Iterator[int]:
        streamer = _QueueStreamer()
        uniform_samples = sampling_noise([request], 1, decoding) if decoding.strategy == "sample" else None
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(self._run, [prompt], decoding, 1, uniform_samples, streamer)
            running.add_done_callback(lambda _: streamer.queue.put(None))
            yield from iter(streamer.queue.get, None)
            running.result()

    @torch.no_grad()
    def _run(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        k: int,
        uniform_samples: torch.Tensor | None,
        streamer: "_QueueStreamer | None" = None,
    ) -> list[GeneratedSequence]:
        """k sequences of each prompt, grouped by prompt: samples if `uniform_samples` [N * k, steps] is given, else the k best."""
        inputs = self._inputs(prompts)
        language, rules = self.model.language_model, self.rules(decoding)
        # An encoder-decoder model's answer begins with a start token; inputs_embeds leave the other kind none of the prompt's tokens.
        start = int(self.is_encoder_decoder)
        sampler = None if uniform_samples is None else InverseCdfSampling(rules, uniform_samples, start)
        if sampler is not None:
            inputs = {name: tensor.repeat_interleave(k, dim=0) for name, tensor in inputs.items()}
        beams = 1 if sampler is not None else k
        output = language.generate(
            **inputs,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            logits_processor=[sampler or AnswerPenalties(rules, start)],
            stopping_criteria=[] if rules.stop is None else [StopAtText(rules, start)],
            streamer=streamer,
            output_logits=True,
            output_scores=beams > 1 and bool(rules.penalties),
            return_dict_in_generate=True,
            **({"length_penalty": rules.length_penalty} if beams > 1 else {}),
        )
        beam_indices = output.beam_indices if beams > 1 else None
        scores_of = partial(language.compute_transition_scores, output.sequences, beam_indices=beam_indices)
        log_probs = scores_of(scores=output.logits, normalize_logits=True).tolist()
        # The scores of beams are log-probabilities after the penalties; those of one sequence are not ranked.
        penalised: list[list[float]] | None = None
        if rules.penalties and (sampler is not None or beams > 1):
            penalised = sampler.penalised_log_probs() if sampler is not None else scores_of(scores=output.scores).tolist()
        tokens = output.sequences[:, start:].tolist()
        ranked = [None] * len(tokens) if penalised is None else penalised
        return [self._truncate_at_end(row, own, after, rules) for row, own, after in zip(tokens, log_probs, ranked, strict=True)]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """inputs_embeds [N, Q + T, D] and attention_mask [N, Q + T], in the order padding, queries, text."""
        model, device = self.model, self.device
        pixels = torch.cat([prompt.images["pixel_values"] for prompt in prompts])
        queries_nqd = model.get_image_features(pixels.to(device)).pooler_output
        q, longest = queries_nqd.shape[1], max(len(prompt.ids) for prompt in prompts)
        padding = [longest - len(prompt.ids) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (n + q) + p.ids for n, p in zip(padding, prompts, strict=True)], device=device)
        embeds = model.language_model.get_input_embeddings()(ids)
        mask = torch.ones_like(ids)
        for i, n in enumerate(padding):
            embeds[i, n : n + q] = queries_nqd[i].to(embeds.dtype)
            mask[i, :n] = 0
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def _truncate_at_end(
        self, tokens: list[int], log_probs: list[float], penalised: list[float] | None, rules: DecodingRules
    ) -> GeneratedSequence:
        """The sequence up to and including its first end token or stop text; what follows is padding."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.end_ids), len(tokens))
        end = end if rules.stop is None else len(rules.stop.cut_ids(tokens[:end]))
        return GeneratedSequence(tuple(tokens[:end]), sum(log_probs[:end]), None if penalised is None else sum(penalised[:end]))


class AnswerPenalties(LogitsProcessor):
    """The penalties of decoding settings, by the tokens of the answer alone. start: number of tokens before the answer."""

    def __init__(self, rules: DecodingRules, start: int):
        self.rules, self.start = rules, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        return self.rules.penalise(input_ids[:, self.start :], scores, scores)


class InverseCdfSampling(AnswerPenalties):
    """Keeps one token per row, sampled by the row's own random numbers. uniform_samples: [rows, steps] in 0..1."""

    def __init__(self, rules: DecodingRules, uniform_samples: torch.Tensor, start: int):
        super().__init__(rules, start)
        self.uniform_samples, self._penalised = uniform_samples, list[torch.Tensor]()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        step = len(self._penalised)
        penalised = super().__call__(input_ids, scores.float())  # type: ignore[arg-type]
        warped = self.rules.warpers(input_ids[:, self.start :], penalised)
        tokens = sample_tokens(warped, self.uniform_samples[:, step].to(scores.device))[:, None]
        self._penalised.append(torch.log_softmax(penalised, dim=-1).gather(1, tokens))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def penalised_log_probs(self) -> list[list[float]]:
        """Log-probability of each row's tokens after the penalties, before the temperature."""
        values: list[list[float]] = torch.cat(self._penalised, dim=1).tolist()
        return values


class StopAtText(StoppingCriteria):
    """Ends a row whose latest token completes a stop text. start: number of tokens before the answer."""

    def __init__(self, rules: DecodingRules, start: int):
        self.rules, self.start = rules, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.Tensor:
        del scores
        return self.rules.stopped(input_ids[:, self.start :])


class _QueueStreamer(BaseStreamer):
    """Passes the tokens of one sequence through a queue. The first value is the prompt and is skipped."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.prompt_skipped = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_skipped:
            self.queue.put(int(value.reshape(-1)[0]))
        self.prompt_skipped = True

    def end(self) -> None:
        """Nothing: the caller of `generate` signals the end to the reader."""


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """All end tokens: those of the folder's settings (a line break for OPT) and that of the tokenizer."""
    ids: list[int] = []
    for settings in (model.generation_config, model.language_model.generation_config, model.config.text_config, tokenizer):
        eos = settings.eos_token_id
        ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ids


def load(system: Blip2System, device: torch.device | str, dtype: torch.dtype | None = None) -> Blip2Answerer:
    """Load a configured system. Raises UsageError if it cannot be loaded, is of another family or lacks weights."""
    where = f"system {system.name}, path"
    dtype = dtype or default_dtype(device)
    with loading(where, system.path):
        config = AutoConfig.from_pretrained(**pretrained(system.path))
    if config.model_type != "blip-2":
        raise UsageError(f"{where}: {system.path} is a {config.model_type} model, the system's kind says blip2")
    quantized = quantization_config(system.quantization, dtype, skip_modules=NOT_QUANTISED)
    options = {} if quantized is None else {"quantization_config": quantized}
    with loading(where, system.path):
        # Not Blip2Processor, which adds a token to the tokenizer.
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(system.path))
        image_processor = load_image_processor(system.path)
        model, report = Blip2ForConditionalGeneration.from_pretrained(
            **pretrained(system.path), config=config, dtype=dtype, device_map={"": device}, output_loading_info=True, **options
        )
    if report["missing_keys"]:
        raise UsageError(f"{where}: {system.path} lacks weights, such as {min(report['missing_keys'])}")
    disable_avx512bf16(model)
    if system.adapter is not None:
        model = with_adapter(model, system.adapter, f"system {system.name}, adapter")
    return Blip2Answerer(model.eval(), tokenizer, image_processor, system)


def with_adapter(model: Any, folder: Path, where: str) -> Any:
    """The model with a LoRA adapter injected into its layers. Raises UsageError if the adapter was trained on another model.

    where: the configuration key for the message.
    """
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} does not exist")
    with loading(where, str(folder)):
        settings = peft.PeftConfig.from_pretrained(folder)
        if settings.peft_type != peft.PeftType.LORA:
            raise ValueError(f"it is a {settings.peft_type.value} adapter, LORA is expected")
        weights = peft.load_peft_weights(str(folder), device="cpu")
        try:
            adapted = peft.PeftModel.from_pretrained(model, folder)
        except RuntimeError as error:
            raise ValueError(f"its weights have other shapes: {error}") from error
    expected = peft.get_peft_model_state_dict(adapted)
    if wrong := sorted(expected.keys() ^ weights.keys()):
        raise UsageError(
            f"{where}: {folder} was trained on another model ({len(wrong)} weights are missing or left over, such as {wrong[0]})"
        )
    return adapted.get_base_model()
