"""Settings of the evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from answering.config import System
from config_schema import section
from dataset.source_base import Split

PositiveInt = Annotated[int, Field(ge=1)]
Corruption = Literal["blur", "noise", "dark", "occlusion", "jpeg"]
Strength = Annotated[int, Field(ge=1, le=5)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@section
class Thresholds:
    """Limits for the first checkpoint and its control runs, as VQA accuracy 0..1; the command exits with status 1 if one is missed."""

    first: Fraction | None = None
    """Lowest accuracy of the first candidates."""
    shuffled_images: Fraction | None = None
    """Highest accuracy with shuffled images."""
    untuned: Fraction | None = None
    """Highest accuracy with an untrained connector."""
    min_lead: Fraction | None = None
    """Smallest lead over the control run with shuffled images."""


@section
class EvalConfig:
    """The evaluation: which systems answer which questions, control runs, statistics and report."""

    systems: tuple[System, ...] = ()
    """The systems that are compared."""
    split: Split = "test"
    """Split that the questions come from."""
    limit: PositiveInt | None = None
    """Largest number of questions, selected by a hash of the sample id: the same questions for every system. null: all."""
    controls: tuple[Literal["shuffled_images", "untuned"], ...] = ()
    """Control runs of the first checkpoint: with shuffled images, and with an untrained connector."""
    groups: dict[str, tuple[str, ...]] | None = None
    """Group name -> systems that are seeds of one configuration. The report gives their mean and spread and compares the group
    instead of its members."""
    curve: bool = False
    """Treat the systems as checkpoints of one training run: plot accuracy over steps, compare each checkpoint with the last one only."""
    corruptions: tuple[Corruption, ...] = ()
    """Repeat short questions on images corrupted in these ways."""
    corruption_strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] = (1, 3, 5)
    """Strengths of each corruption, from 1 (weak) to 5 (strong)."""
    corruption_limit: PositiveInt = 200
    """Largest number of short questions per corruption and strength."""
    thresholds: Thresholds = Thresholds()
    """Limits that the first checkpoint and its control runs must meet."""
    note: str | None = None
    """A sentence printed at the top of the report."""
    resamples: PositiveInt = 2000
    """Random sign assignments of the randomisation test over images."""
    seed: int = 0
    """Seed of the statistics, of the control runs and of the sampled example images."""
    description_tokens: PositiveInt = 64
    """Largest number of new tokens of a caption or description; short answers use decoding.max_new_tokens."""
    max_examples: PositiveInt = 200
    """Largest number of questions listed in report.html: half of them changed by reranking, the rest alternately wrong and right."""
    max_changed_images: PositiveInt = 60
    """Largest number of files in changed/<system>/: an image with its answers before and after reranking."""
