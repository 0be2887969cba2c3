"""Settings of the evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from answering.config import System
from config_schema import section
from dataset.config import Split

PositiveInt = Annotated[int, Field(ge=1)]
Corruption = Literal["blur", "noise", "dark", "occlusion", "jpeg"]
Strength = Annotated[int, Field(ge=1, le=5)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@section
class Thresholds:
    """What must hold for the first checkpoint, as VQA accuracy 0..1; where it does not, the command ends with status 1."""

    first: Fraction | None = None
    """At least this for its first candidates."""
    shuffled_images: Fraction | None = None
    """At most this with shuffled pictures."""
    untuned: Fraction | None = None
    """At most this with an untrained projector."""
    min_lead: Fraction | None = None
    """At least so far above the control with shuffled pictures."""


@section
class EvalConfig:
    """The evaluation: which systems answer which questions, and how sure we are."""

    systems: tuple[System, ...] = ()
    """The systems that are compared, side by side."""
    split: Split = "test"
    """Split whose questions are asked."""
    limit: PositiveInt | None = None
    """Ask at most this many questions, chosen by a hash, the same for every system."""
    controls: tuple[Literal["shuffled_images", "untuned"], ...] = ()
    """Control runs of the first checkpoint: with other pictures, and with an untrained projector."""
    groups: dict[str, tuple[str, ...]] | None = None
    """Systems that are several seeds of one configuration, by the name of each group: mean and spread are reported, and the
    group is compared in their place."""
    curve: bool = False
    """The systems are the checkpoints of one run: drawn over their steps, and each compared with the last one only."""
    corruptions: tuple[Corruption, ...] = ()
    """Ask again on pictures made worse in these ways."""
    corruption_strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] = (1, 3, 5)
    """How much worse, from 1 to 5."""
    corruption_limit: PositiveInt = 200
    """Ask at most this many short questions again under each corruption and strength."""
    thresholds: Thresholds = Thresholds()
    """What the first checkpoint and its controls must reach."""
    note: str | None = None
    """A sentence for the reader that stands at the head of the report."""
    bootstrap: PositiveInt = 2000
    """Resamples of the paired bootstrap over pictures."""
    seed: int = 0
    """Seed of the bootstrap and of the controls."""
    description_tokens: PositiveInt = 64
    """Longest caption or description in tokens; a short answer has decoding.max_new_tokens."""
    max_examples: PositiveInt = 200
    """Questions shown with pictures in the report: half of them changed by reranking, the others by turns wrong and right."""
    max_changed_images: PositiveInt = 60
    """Pictures with their answers before and after the rerank that are written as files, for each system."""
