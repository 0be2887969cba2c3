"""Settings of decoding, of the systems that answer, and of reranking."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from config_schema import section
from errors import UsageError
from visual.config import ModelNameOrPath

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
TextTemplate = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
"""Text that contains {} exactly once."""
AS_TRAINED = "as_trained"
"""In place of a prompt: the one that a checkpoint was trained with."""


@section
class DecodingConfig:
    """How candidates are generated."""

    num_candidates: PositiveInt = 5
    """Candidates per question (k)."""
    strategy: Literal["beam", "sample", "greedy"] = "beam"
    """beam = beam search with k beams; sample = k samples; greedy = a single answer."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of `strategy: sample`."""
    max_new_tokens: PositiveInt = 16
    """Longest answer in tokens, including the end token."""
    seed: int = 0
    """Seed of `strategy: sample`."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample among the most probable tokens whose probabilities, together, are at least this; 1: among all. Of `strategy: sample`,
    of sampled chat completions and of endpoints."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among this many most probable tokens; 0: among all. Of `strategy: sample` and of sampled chat completions."""
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Tokens that the answer already has: positive logits are divided by this, negative ones multiplied; 1: none."""
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of every token that the answer already has."""
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of a token for each time that the answer already has it."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    """No sequence of this many tokens occurs twice in an answer; 0: any may. null = 0 for short answers and 12 for captions,
    descriptions and conversations, where it ends loops; endpoints are not sent it."""
    length_penalty: Annotated[float, Field(ge=-10.0, le=10.0)] = 1.0
    """Beam search ranks by log-probability / tokens ** length_penalty: the mean at 1, the sum at 0; lower values prefer shorter answers."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)] = ()
    """An answer ends before the first of these texts, at most 4, such as ["."]."""
    batch_size: PositiveInt = 16
    """Questions per batch."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Replay decoding steps of our own models as CUDA graphs; streamed answers and other kinds of systems never use them. auto = if
    the model is unquantised and on a CUDA device; if capture fails, decoding continues without them and logs a warning. true = it
    is an error if they cannot be used."""


DESCRIPTION_NGRAM_SIZE = 12
"""no_repeat_ngram_size of long texts where the configuration has null: longer than what good descriptions repeat. Of 1,357 references of
the demo, 116 have a sequence of 6 tokens twice ("one sees a white triangle"), one has a sequence of 12."""


def for_descriptions(decoding: DecodingConfig, max_new_tokens: int) -> DecodingConfig:
    """The settings of captions, descriptions and conversations, which may be longer and in which a model may fall into a loop."""
    size = DESCRIPTION_NGRAM_SIZE if decoding.no_repeat_ngram_size is None else decoding.no_repeat_ngram_size
    return dataclasses.replace(decoding, max_new_tokens=max_new_tokens, no_repeat_ngram_size=size)


@section
class SystemBase:
    """Settings of every system."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the system in the report and of its predictions file."""
    short_answer_prompt: str | None = "Answer the question using a single word or phrase."
    """Added after an English short-answer question, on a new line; null leaves the question unchanged."""
    short_answer_prompt_zh: str | None = "请用一个词或短语回答。"
    """The same for a Chinese question."""
    clean_answers: bool = True
    """Extract the answer from a sentence ("The brand is X." -> "X"); the predictions keep the raw text."""


@section
class CheckpointSystem(SystemBase):
    """One of our checkpoints."""

    kind: Literal["checkpoint"]
    path: str = "latest"
    """Checkpoint folder, or a folder of checkpoints, of which the latest complete one is used; `latest` = that of checkpoints/<name>."""
    quantization: Literal["as_trained", "none", "int8", "nf4"] = "as_trained"
    """How the language model is loaded."""
    short_answer_prompt: str | None = AS_TRAINED
    """As above; as_trained = the prompt of the training data, which the checkpoint records (none in checkpoints without one)."""
    short_answer_prompt_zh: str | None = AS_TRAINED
    """As above."""
    clean_answers: bool = False
    """As above; our own models are trained to give short answers."""


@section
class QwenVlSystem(SystemBase):
    """A Qwen vision-language model as a baseline."""

    family: ClassVar[str] = "qwen_vl"
    """Model family that loads it."""
    described: ClassVar[tuple[str, ...]] = ("path", "quantization", "max_image_side")
    """Settings that its answers depend on."""

    kind: Literal["qwen3_vl", "qwen2_5_vl"]
    """Family of the model."""
    path: ModelNameOrPath
    """Folder or hub name."""
    quantization: Literal["none", "int8", "nf4"] = "nf4"
    """How the language model is loaded."""
    max_image_side: Annotated[int, Field(ge=28)] | None = None
    """Images are downscaled so that their longer side has at most this many pixels, before the model's own image processor resizes them;
    null = within the limits of that image processor alone."""
    max_memory: dict[str, str] | None = None
    """Memory limit per device, such as {"0": "10GiB", cpu: "24GiB"}; layers that do not fit go to the CPU or to offload_folder."""
    offload_folder: Path | None = None
    """Folder for layers that fit on no device."""


@section
class Blip2System(SystemBase):
    """BLIP-2 as a zero-shot baseline, or with an adapter. It takes exactly one image per question."""

    family: ClassVar[str] = "blip2"
    """Model family that loads it."""
    described: ClassVar[tuple[str, ...]] = (
        "path", "quantization", "adapter", "question_prompt", "conversation_prompt", "caption_prompt",
    )  # fmt: skip
    """Settings that its answers depend on."""

    kind: Literal["blip2"]
    path: ModelNameOrPath
    """Folder or hub name of a Blip2ForConditionalGeneration."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the language model is loaded."""
    adapter: Path | None = None
    """Folder of a PEFT LoRA adapter trained on this model; null: no adapter."""
    question_prompt: TextTemplate = "Question: {} Short answer:"
    """Prompt of a short-answer question, which replaces {}."""
    conversation_prompt: TextTemplate = "Question: {} Answer:"
    """Prompt of any other question, which replaces {}."""
    caption_prompt: str = "a photo of"
    """Beginning of a caption, used instead of the instruction; may be empty."""
    short_answer_prompt: str | None = None
    """As above; `question_prompt` already asks for a short answer."""
    short_answer_prompt_zh: str | None = None
    """As above."""


@section
class OpenAiSystem(SystemBase):
    """A model served by an endpoint for OpenAI's chat completions: a paid service, or a program such as `transformers serve`."""

    kind: Literal["openai"]
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "https://api.openai.com/v1"
    """URL of the endpoint, up to /v1. It is saved with the predictions, so it must not contain an API key."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = "OPENAI_API_KEY"
    """Environment variable, or variable in the file .env, that holds the API key; null: the endpoint needs none."""
    max_image_side: Annotated[int, Field(ge=28)] = 1024
    """Images are downscaled so that their longer side has at most this many pixels, and sent as JPEG."""
    sampling: Literal["n", "repeated"] = "n"
    """The first candidate is greedy, unless decoding.strategy is sample; the others are sampled at decoding.temperature. n = in one
    request; repeated = one request each."""
    log_probabilities: bool = True
    """Request log-probabilities; set it to false if the endpoint rejects such requests."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field of the request that carries decoding.max_new_tokens."""
    extra_body: dict[str, JsonValue] | None = None
    """Additional fields of each request, such as {"enable_thinking": false}; they are saved with the predictions."""
    timeout: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds without data from the endpoint after which a request times out."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Retries after status 408, 409, 429 or 5xx, a timeout or a connection error."""
    retry_wait: Annotated[float, Field(gt=0.0)] = 1.0
    """Seconds before the first retry; each wait doubles, up to 60, and is longer if the endpoint asks for it."""
    concurrency: PositiveInt = 4
    """Maximum number of concurrent requests."""
    requests_per_minute: PositiveInt | None = None
    """Rate limit: requests started per minute, including retries; null: no limit."""
    cache: Path = Path("results/endpoint_cache")
    """Folder that caches every response, so that none is paid for twice."""


System = Annotated[CheckpointSystem | QwenVlSystem | Blip2System | OpenAiSystem, Field(discriminator="kind")]


def find_system(systems: Sequence[System], name: str | None, key: str, default: str = "checkpoint") -> System:
    """The system with a name; without a name the latest checkpoint, called `default`.

    key: setting or option that gives the name, for the message. Raises UsageError if no system has it.
    """
    if name is None:
        return CheckpointSystem(name=default, kind="checkpoint", path="latest")
    for system in systems:
        if system.name == name:
            return system
    raise UsageError(f"{key}: eval.systems has no {name} (it has: {', '.join(known.name for known in systems) or 'none'})")


@section
class RerankWeights:
    """Weights of the scores in the fusion; only their ratios matter."""

    likelihood: NonNegativeFloat = 0.8
    """Weight of the softmax over mean log-probabilities, min-max normalised over the candidates."""
    clip: NonNegativeFloat = 0.2
    """Weight of the CLIP logits in the form rerank.clip_score_form, min-max normalised over the candidates; the mean of all scorers."""
    self_evaluation: NonNegativeFloat = 0.0
    """Weight of the answerer's own P(yes), min-max normalised over the candidates; used if rerank.self_evaluation is true."""


@section
class ScorerConfig:
    """An image-text scorer in addition to rerank.clip, with its own choices in the report."""

    name: Annotated[str, Field(pattern=r"^[a-z][\w-]*$")]
    """Name of its choice in the report."""
    path: ModelNameOrPath
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name."""
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en", "zh")
    """Languages of the questions that it scores; others are skipped."""


@section
class RerankConfig:
    """Reranking of candidates by image-text scorers and likelihood."""

    clip: ModelNameOrPath | None = None
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name; null: no reranking."""
    scorers: tuple[ScorerConfig, ...] = ()
    """Additional scorers."""
    statement_form: Literal["sentence", "joined"] = "sentence"
    """Text given to a scorer. sentence = a sentence made of question and answer if a template matches; joined = the question followed
    by the answer."""
    clip_score_form: Literal["softmax", "raw", "prior_corrected"] = "softmax"
    """How logits enter the fusion. softmax = over the candidates; raw = unchanged; prior_corrected = softmax of the scores minus the mean
    scores on the background images."""
    background_images: Annotated[int, Field(ge=0)] = 128
    """Number of images of the merged data that measure how well a text fits an unrelated image; 0: no prior-corrected choices."""
    self_evaluation: bool = False
    """Ask the answerer whether each candidate is right (one more forward pass per candidate)."""
    weights: RerankWeights = RerankWeights()
    """Weights of the scores."""
    skipped_question_types: tuple[Literal["yes/no", "counting"], ...] = ("yes/no", "counting")
    """Question types that reranking skips: they keep their first answer, unless `tune` shows a gain for the type."""
    tune: bool = False
    """On the validation split, by cross-validation: choose the weights, the score form and the skipped question types, and fit the learned
    fusion and the confidence."""
    tune_limit: PositiveInt | None = None
    """Use at most this many questions of the validation split for `tune`."""
    calibration: Literal["logistic", "isotonic"] = "logistic"
    """How the confidence is calibrated: a logistic model of the evidence alone, or isotonic regression applied to its output."""
    abstain_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Answer "not sure" if the confidence is lower; needs the values that `tune` fits."""


def with_abstain_below(rerank: RerankConfig, below: float | None) -> RerankConfig:
    """The settings with rerank.abstain_below replaced by the value of --abstain-below, if given. Raises UsageError outside 0..1."""
    if below is None:
        return rerank
    if not 0.0 <= below <= 1.0:
        raise UsageError(f"--abstain-below {below}: expected a probability, 0 to 1")
    return dataclasses.replace(rerank, abstain_below=below)


def scorer_keys(rerank: RerankConfig) -> list[str]:
    """The configuration keys that name a scorer."""
    return ["rerank.clip", *(f"rerank.scorers.{i}.path" for i in range(len(rerank.scorers)))]
