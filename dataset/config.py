"""Settings of the data: sources, splits, validation."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from config_schema import section

Split = Literal["train", "validation", "test"]


Questions = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]


@section
class SourceBase:
    """What every source has."""

    images: Path | None = None
    """Folder that picture names are relative to; the annotation file's own by default."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the source in reports and sample ids; the format's name by default, numbered when it stands twice."""
    split: Split | None = None
    """The split that all of this source belongs to; by default the file's own split, else by picture content."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many records from the start of the file."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often each training sample of this source stands in the merged data."""


@section
class AiChallengerSource(SourceBase):
    """AI Challenger captions: a JSON list of {image_id | image, caption | conversations: [Chinese sentences]}."""

    format: Literal["ai_challenger"]
    annotations: Path
    """The JSON file."""
    questions: Questions = ("这幅图像描述了什么？", "这幅图像中有什么？")
    """The questions, drawn with equal chance by a hash of the sample."""


@section
class LlavaSource(SourceBase):
    """LLaVA conversations: a JSON list of {id, image, conversations: [{from: human | gpt, value}]}."""

    format: Literal["llava"]
    annotations: Path
    """The JSON file."""


@section
class CocoCaptionsSource(SourceBase):
    """Official COCO captions: {images: [{id, file_name}], annotations: [{image_id, caption}]}."""

    format: Literal["coco_captions"]
    annotations: Path
    """The JSON file."""
    questions: Questions = ("What does this picture show?", "Describe the picture in one sentence.")
    """The questions, drawn with equal chance by a hash of the sample."""


@section
class VqaV2Source(SourceBase):
    """Official VQA v2: a question file and an annotation file with ten answers a question."""

    format: Literal["vqav2"]
    questions: Path
    """The question JSON file."""
    annotations: Path
    """The annotation JSON file."""


@section
class VqaMetadataSource(SourceBase):
    """A JSON list of {id, question, answers, image_file}, or TextVQA's own file: {data: [{question_id, image_id, ...}]}."""

    format: Literal["vqa_metadata"]
    annotations: Path
    """The JSON file."""


@section
class MessagesSource(SourceBase):
    """JSONL or Parquet rows of {messages: [{role, content}], images: [name | {bytes, path}]}."""

    format: Literal["messages"]
    path: Path
    """The .jsonl or .parquet file."""


Source = Annotated[
    AiChallengerSource | LlavaSource | CocoCaptionsSource | VqaV2Source | VqaMetadataSource | MessagesSource,
    Field(discriminator="format"),
]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


@section
class SplitConfig:
    """Shares of the pictures that go to validation and test; the rest is for training."""

    validation: Fraction = 0.05
    """Share of the pictures for validation."""
    test: Fraction = 0.10
    """Share of the pictures for the test."""

    @model_validator(mode="after")
    def _check_training_fraction(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing for training")
        return self


@section
class AugmentationConfig:
    """Random changes of training pictures. There are no flips: they turn left into right."""

    brightness: Fraction = 0.0
    """Brightness factor is drawn from 1 - this .. 1 + this."""
    contrast: Fraction = 0.0
    """Contrast factor, likewise."""
    saturation: Fraction = 0.0
    """Saturation factor, likewise."""
    rotation: Annotated[float, Field(ge=0.0, le=15.0)] = 0.0
    """Rotation in degrees is drawn from -this .. +this."""


@section
class DataConfig:
    """The data: raw sources, how they are merged and split."""

    sources: tuple[Source, ...] = ()
    """Raw annotation files, merged in this order."""
    folder: Path | None = None
    """Where the merged data stands; data/<name> by default."""
    split: SplitConfig = SplitConfig()
    """Shares of pictures by split, for sources without a split of their own."""
    seed: int = 0
    """Seed of the split and of the question templates."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Pictures with more pixels are dropped, before they are decoded."""
    vqa_target: Literal["majority", "sample"] = "majority"
    """What stands as the target of a question with several answers: the most frequent one, or one drawn each epoch."""
    augmentation: AugmentationConfig | None = None
    """Random changes of training pictures; none by default."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that read pictures while merging; as many as there are cores by default."""
