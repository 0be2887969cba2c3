"""Settings of answering: decoding, the systems that answer, reranking."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from config_schema import section
from errors import UsageError
from visual.config import ModelNameOrPath

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
TextTemplate = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
"""Text with one {} in it."""


@section
class DecodingConfig:
    """How candidates are produced."""

    num_candidates: PositiveInt = 5
    """Candidates a question."""
    strategy: Literal["beam", "sample", "greedy"] = "beam"
    """Beam search with k beams, k samples, or the single greedy answer."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of `mode: sample`."""
    max_new_tokens: PositiveInt = 16
    """Longest answer in tokens, end token counted."""
    seed: int = 0
    """Seed of `mode: sample`."""
    batch_size: PositiveInt = 16
    """Questions answered together."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Replay decoding steps of our own models as CUDA graphs; streamed answers and other kinds of systems have none. auto = where
    the model is unquantised on a CUDA device; should it fail there, decoding goes on without, and says so. true = it is an error
    where they cannot be had."""


@section
class SystemBase:
    """What every system has."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name in the report and of the predictions file."""
    short_answer_prompt: str | None = "Answer the question using a single word or phrase."
    """Put behind an English short-answer question, after a line break; null leaves the question as it is."""
    short_answer_prompt_zh: str | None = "请用一个词或短语回答。"
    """The same behind a Chinese question."""
    clean_answers: bool = True
    """Take the answer out of a sentence ("The brand is X." -> "X"); the raw text stays in the predictions."""


@section
class CheckpointSystem(SystemBase):
    """One of our checkpoints."""

    kind: Literal["checkpoint"]
    path: str = "latest"
    """Checkpoint folder, or one that holds checkpoints, of which the newest whole one is taken; `newest` = checkpoints/<name>."""
    quantization: Literal["as_trained", "none", "int8", "nf4"] = "as_trained"
    """How the language model is loaded."""
    short_answer_prompt: str | None = None
    """As above; our own models are trained on the bare question."""
    short_answer_prompt_zh: str | None = None
    """As above."""
    clean_answers: bool = False
    """As above; our own models are trained to answer shortly."""


@section
class QwenVlSystem(SystemBase):
    """A Qwen vision-language model as a baseline."""

    kind: Literal["qwen3_vl", "qwen2_5_vl"]
    """Family of the model."""
    path: ModelNameOrPath
    """Folder or hub name."""
    quantization: Literal["none", "int8", "nf4"] = "nf4"
    """How the language model is loaded."""
    max_image_side: Annotated[int, Field(ge=28)] = 384
    """Pictures are shrunk so that their longer side has at most this many pixels."""
    max_memory: dict[str, str] | None = None
    """Memory by device, such as {"0": "10GiB", cpu: "24GiB"}; what does not fit goes to the CPU or to offload_folder."""
    offload_folder: Path | None = None
    """Folder for layers that fit nowhere else."""


@section
class Blip2System(SystemBase):
    """BLIP-2 as a zero-shot baseline, or with an adapter; it takes one picture a question."""

    kind: Literal["blip2"]
    path: ModelNameOrPath
    """Folder or hub name of a Blip2ForConditionalGeneration."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the language model is loaded."""
    adapter: Path | None = None
    """Folder of a LoRA adapter in PEFT's format, trained on this model; null: the model as it is."""
    question_prompt: TextTemplate = "Question: {} Short answer:"
    """What a short-answer question becomes; the question stands for {}."""
    conversation_prompt: TextTemplate = "Question: {} Answer:"
    """What any other question becomes."""
    caption_prompt: str = "a photo of"
    """What a caption begins with, in the place of the question that asks for it; may be empty."""
    short_answer_prompt: str | None = None
    """As above; `question_prompt` says it already."""
    short_answer_prompt_zh: str | None = None
    """As above."""


@section
class OpenAiSystem(SystemBase):
    """A model behind an endpoint that speaks OpenAI's chat completions: a service, vLLM, SGLang, `transformers serve`."""

    kind: Literal["openai"]
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "https://api.openai.com/v1"
    """Address of the endpoint, up to /v1. It is saved with the predictions, so it must not hold a key."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = "OPENAI_API_KEY"
    """Environment variable, or line of the file .env, that holds the key; null: the endpoint wants none."""
    max_image_side: Annotated[int, Field(ge=28)] = 1024
    """Pictures are shrunk so that their longer side has at most this many pixels, and sent as JPEG."""
    sampling: Literal["n", "repeated"] = "n"
    """The first candidate is greedy; the other k - 1 are samples at decoding.temperature, asked for in one request, or in one each."""
    log_probabilities: bool = True
    """Ask for log-probabilities; false for an endpoint that refuses the question."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the endpoint takes decoding.max_new_tokens."""
    extra_body: dict[str, JsonValue] | None = None
    """Further fields of each request, such as {"enable_thinking": false}; they are saved with the predictions."""
    timeout: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds without a sign from the endpoint after which a try is given up."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further tries after status 408, 409, 429 or 5xx, after a time-out and without a connection."""
    retry_wait: Annotated[float, Field(gt=0.0)] = 1.0
    """Seconds before the first further try; each wait is twice the last one, at most 60, and longer where the endpoint says so."""
    concurrency: PositiveInt = 4
    """Requests under way at once."""
    requests_per_minute: PositiveInt | None = None
    """Requests that are begun in a minute at most, further tries counted; null: no limit."""
    cache: Path = Path("results/endpoint_cache")
    """Folder that keeps every reply, so that none is paid for twice."""


System = Annotated[CheckpointSystem | QwenVlSystem | Blip2System | OpenAiSystem, Field(discriminator="kind")]


@section
class RerankWeights:
    """Weights of the signals; only their proportions matter."""

    likelihood: NonNegativeFloat = 0.8
    """Of the softmax over mean log-probabilities, min-max normalised over the candidates."""
    clip: NonNegativeFloat = 0.2
    """Of what rerank.clip_score_form makes of CLIP logits, min-max normalised over the candidates; of several scorers their mean."""
    self_evaluation: NonNegativeFloat = 0.0
    """Of the answerer's own P(yes), min-max normalised over the candidates; it counts where rerank.self_evaluation is true."""


@section
class ScorerConfig:
    """A further picture-text scorer beside rerank.clip, with choices of its own in the report."""

    name: Annotated[str, Field(pattern=r"^[a-z][\w-]*$")]
    """Name of its choice."""
    path: ModelNameOrPath
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name."""
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en", "zh")
    """Questions in other languages are not scored by it."""


@section
class RerankConfig:
    """Reranking of candidates by picture-text scorers and likelihood."""

    clip: ModelNameOrPath | None = None
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name; null: no reranking."""
    scorers: tuple[ScorerConfig, ...] = ()
    """Further scorers."""
    statement_form: Literal["sentence", "joined"] = "sentence"
    """What a scorer reads: a sentence made of question and answer where a template fits, or the answer behind the question."""
    clip_score_form: Literal["softmax", "raw", "prior_corrected"] = "softmax"
    """How logits enter the fusion: softmax over the candidates, as they are, or softmax of scores minus `bank`'s."""
    background_images: Annotated[int, Field(ge=0)] = 128
    """Pictures of the merged data that say how well a text fits any picture; 0: no prior-corrected choices."""
    self_evaluation: bool = False
    """Ask the answerer whether each candidate is right (one more forward pass a candidate)."""
    weights: RerankWeights = RerankWeights()
    """Weights of the signals."""
    skipped_question_types: tuple[Literal["yes/no", "counting"], ...] = ("yes/no", "counting")
    """Kinds of questions that keep their first answer, unless `tune` shows a gain there."""
    tune: bool = False
    """On the validation split, by cross-validation: choose weights, form and guard, fit the learned fusion and the credibility."""
    tune_limit: PositiveInt | None = None
    """Ask at most this many questions of the validation split for that."""
    calibration: Literal["logistic", "isotonic"] = "logistic"
    """How credibility becomes a probability: a logistic model of the evidence, or isotonic steps behind it."""
    abstain_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Answer "not sure" where the credibility is lower; it needs what `tune` fits."""


def with_abstain_below(rerank: RerankConfig, below: float | None) -> RerankConfig:
    """The settings with what --abstain-below says in the place of rerank.abstain_below. Raises UsageError outside 0..1."""
    if below is None:
        return rerank
    if not 0.0 <= below <= 1.0:
        raise UsageError(f"--abstain-below {below}: expected a probability, 0 to 1")
    return dataclasses.replace(rerank, abstain_below=below)


def scorer_keys(rerank: RerankConfig) -> list[str]:
    """The configuration's keys that name a scorer."""
    return ["rerank.clip", *(f"rerank.scorers.{i}.path" for i in range(len(rerank.scorers)))]
