"""Settings of answering: decoding, the systems that answer, reranking."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from schema import section
from visual.config import PartName

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Template = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
"""Text with one {} in it."""


@section
class DecodingConfig:
    """How candidates are produced."""

    k: Positive = 5
    """Candidates a question."""
    mode: Literal["beam", "sample", "greedy"] = "beam"
    """Beam search with k beams, k samples, or the single greedy answer."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of `mode: sample`."""
    max_new_tokens: Positive = 16
    """Longest answer in tokens, end token counted."""
    seed: int = 0
    """Seed of `mode: sample`."""
    batch_size: Positive = 16
    """Questions answered together."""
    cuda_graphs: bool = True
    """Replay decoding steps as CUDA graphs: of our own models, unquantised, on a CUDA device; elsewhere it changes nothing."""


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
    path: str = "newest"
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
    path: PartName
    """Folder or hub name."""
    quantization: Literal["none", "int8", "nf4"] = "nf4"
    """How the language model is loaded."""
    max_side: Annotated[int, Field(ge=28)] = 384
    """Pictures are shrunk so that their longer side has at most this many pixels."""
    max_memory: dict[str, str] | None = None
    """Memory by device, such as {"0": "10GiB", cpu: "24GiB"}; what does not fit goes to the CPU or to offload_folder."""
    offload_folder: Path | None = None
    """Folder for layers that fit nowhere else."""


@section
class Blip2System(SystemBase):
    """BLIP-2 as a zero-shot baseline, or with an adapter; it takes one picture a question."""

    kind: Literal["blip2"]
    path: PartName
    """Folder or hub name of a Blip2ForConditionalGeneration."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the language model is loaded."""
    adapter: Path | None = None
    """Folder of a LoRA adapter in PEFT's format, trained on this model; null: the model as it is."""
    question_prompt: Template = "Question: {} Short answer:"
    """What a short-answer question becomes; the question stands for {}."""
    conversation_prompt: Template = "Question: {} Answer:"
    """What any other question becomes."""
    caption_prompt: str = "a photo of"
    """What a caption begins with, in the place of the question that asks for it; may be empty."""
    short_answer_prompt: str | None = None
    """As above; `question_prompt` says it already."""
    short_answer_prompt_zh: str | None = None
    """As above."""


System = Annotated[CheckpointSystem | QwenVlSystem | Blip2System, Field(discriminator="kind")]


@section
class RerankWeights:
    """Weights of the signals; only their proportions matter."""

    likelihood: Weight = 0.8
    """Of the softmax over mean log-probabilities, min-max normalised over the candidates."""
    clip: Weight = 0.2
    """Of what rerank.form makes of CLIP logits, min-max normalised over the candidates; of several scorers their mean."""
    self_score: Weight = 0.0
    """Of the answerer's own P(yes), min-max normalised over the candidates; it counts where rerank.self_score is true."""


@section
class ScorerConfig:
    """A further picture-text scorer beside rerank.clip, with choices of its own in the report."""

    name: Annotated[str, Field(pattern=r"^[a-z][\w-]*$")]
    """Name of its choice."""
    path: PartName
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name."""
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en", "zh")
    """Questions in other languages are not scored by it."""


@section
class RerankConfig:
    """Reranking of candidates by picture-text scorers and likelihood."""

    clip: PartName | None = None
    """CLIP, SigLIP or Chinese-CLIP: folder or hub name; null: no reranking."""
    scorers: tuple[ScorerConfig, ...] = ()
    """Further scorers."""
    wording: Literal["sentence", "joined"] = "sentence"
    """What a scorer reads: a sentence made of question and answer where a template fits, or the answer behind the question."""
    form: Literal["softmax", "raw", "prior_corrected"] = "softmax"
    """How logits enter the fusion: softmax over the candidates, as they are, or softmax of scores minus `bank`'s."""
    bank: Annotated[int, Field(ge=0)] = 128
    """Pictures of the merged data that say how well a text fits any picture; 0: no prior-corrected choices."""
    self_score: bool = False
    """Ask the answerer whether each candidate is right (one more forward pass a candidate)."""
    weights: RerankWeights = RerankWeights()
    """Weights of the signals."""
    guard: tuple[Literal["yes/no", "counting"], ...] = ("yes/no", "counting")
    """Kinds of questions that keep their first answer, unless `tune` shows a gain there."""
    tune: bool = False
    """On the validation split, by cross-validation: choose weights, form and guard, fit the learned fusion and the credibility."""
    tune_limit: Positive | None = None
    """Ask at most this many questions of the validation split for that."""
    calibration: Literal["logistic", "isotonic"] = "logistic"
    """How credibility becomes a probability: a logistic model of the evidence, or isotonic steps behind it."""
    abstain_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Answer "not sure" where the credibility is lower; it needs what `tune` fits."""
