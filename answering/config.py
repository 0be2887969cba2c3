"""Settings of answering: decoding, the systems that answer, reranking."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from schema import section
from visual.config import PartName

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]


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


System = Annotated[CheckpointSystem | QwenVlSystem, Field(discriminator="kind")]


@section
class RerankWeights:
    """Weights of the signals; only their proportions matter."""

    likelihood: Weight = 0.8
    """Of the softmax over mean log-probabilities, min-max normalised over the candidates."""
    clip: Weight = 0.2
    """Of the softmax over CLIP logits, min-max normalised over the candidates."""


@section
class RerankConfig:
    """Reranking of candidates by CLIP and likelihood."""

    clip: PartName | None = None
    """CLIP folder or hub name; null: no reranking."""
    weights: RerankWeights = RerankWeights()
    """Weights of the signals."""
    tune: bool = False
    """Choose the weights on the validation split instead."""
