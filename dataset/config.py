"""Configuration of the data: sources, splits, image limits, augmentation."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from config_schema import section

Split = Literal["train", "validation", "test"]


Questions = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]
"""Question templates: at least one, none blank."""


def _check_prompt(text: str) -> str:
    """The text without blank space around it. Raises ValueError when it has an image placeholder."""
    if "<image>" in text:
        raise ValueError("a prompt cannot contain <image>")
    return text.strip()


PromptText = Annotated[str, AfterValidator(_check_prompt)]
"""A sentence that says how an answer is wanted; a blank one is none."""


@section
class PromptByLanguage:
    """A sentence that says how an answer is wanted, by the language of the question."""

    en: PromptText | None = "Answer the question using a single word or phrase."
    """After English questions; null = none."""
    zh: PromptText | None = "请用一个词或短语回答。"
    """After Chinese questions; null = none."""


@section
class SourceBase:
    """Keys that every source has."""

    images: Path | None = None
    """Folder that image names are relative to; by default the folder of the annotation file."""
    allow_outside_images: bool = False
    """Also read images whose names lead out of this folder: absolute paths and names with `..`. Only for annotation files that you
    trust: any file that such a name points to is opened."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the source in reports and sample ids; by default the format, numbered from its second use on."""
    split: Split | None = None
    """Split of all samples of this source; by default the split stated in the file, else a hash of the image content decides."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many records from the start of the file."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How many times each training sample of this source is written to the merged data."""
    prompt: PromptText | PromptByLanguage | None = None
    """Sentence that says how an answer is wanted. It follows every question of this source on a line of its own, in training and again
    when the trained model is asked a question of this kind and language. One text, or {en: ..., zh: ...}; null = none, the default."""

    @property
    def annotation_files(self) -> list[Path]:
        """The files that the records are read from."""
        return [path for key in ("questions", "annotations", "path") if isinstance(path := getattr(self, key, None), Path)]

    @property
    def image_folder(self) -> Path:
        """Folder that image names are relative to."""
        return self.images or self.annotation_files[0].parent

    def prompt_in(self, language: Literal["en", "zh"]) -> str | None:
        """The prompt of a question in a language; None if it has none."""
        text = getattr(self.prompt, language) if isinstance(self.prompt, PromptByLanguage) else self.prompt
        return text or None


@section
class AiChallengerSource(SourceBase):
    """AI Challenger captions: a JSON list of {image_id | image, caption | conversations: [Chinese sentences]}."""

    format: Literal["ai_challenger"]
    annotations: Path
    """The JSON file."""
    questions: Questions = ("这幅图像描述了什么？", "这幅图像中有什么？")
    """Question templates; a hash of the sample picks one, all with equal probability."""


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
    """Question templates; a hash of the sample picks one, all with equal probability."""


@section
class VqaV2Source(SourceBase):
    """Official VQA v2: a question file and an annotation file with ten answers per question."""

    format: Literal["vqav2"]
    questions: Path
    """The question JSON file."""
    annotations: Path
    """The annotation JSON file."""
    prompt: PromptText | PromptByLanguage | None = PromptByLanguage()
    """As for every source; by default a sentence that asks for a word or phrase."""


@section
class VqaMetadataSource(SourceBase):
    """A JSON list of {id, question, answers, image_file}, or TextVQA's own file: {data: [{question_id, image_id, ...}]}."""

    format: Literal["vqa_metadata"]
    annotations: Path
    """The JSON file."""
    prompt: PromptText | PromptByLanguage | None = PromptByLanguage()
    """As for every source; by default a sentence that asks for a word or phrase."""


@section
class MessagesSource(SourceBase):
    """JSONL, JSON or Parquet rows of {messages: [{role, content}], images: [name | {bytes, path}]}, or with `conversations`, `image`."""

    format: Literal["messages"]
    path: Path
    """The .jsonl, .json (one list) or .parquet file."""


Source = Annotated[
    AiChallengerSource | LlavaSource | CocoCaptionsSource | VqaV2Source | VqaMetadataSource | MessagesSource,
    Field(discriminator="format"),
]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


@section
class SplitConfig:
    """Fractions of the images that go to validation and test (the rest is for training), and what near duplicates do."""

    validation: Fraction = 0.05
    """Fraction of the images for validation."""
    test: Fraction = 0.10
    """Fraction of the images for the test split."""
    near_duplicates: Literal["count", "together"] = "count"
    """What to do about images that look alike (a smaller copy, another compression): count those in different splits in the report, or
    also keep each group of them in one split."""

    @model_validator(mode="after")
    def _check_training_fraction(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing for training")
        return self


@section
class AugmentationConfig:
    """Random augmentation of training images."""

    brightness: Fraction = 0.0
    """Brightness factor, uniform in [1 - value, 1 + value]."""
    contrast: Fraction = 0.0
    """Contrast factor, uniform in [1 - value, 1 + value]."""
    saturation: Fraction = 0.0
    """Saturation factor, uniform in [1 - value, 1 + value]."""
    rotation: Annotated[float, Field(ge=0.0, le=15.0)] = 0.0
    """Rotation angle in degrees, uniform in [-value, value]."""
    horizontal_flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that an image is mirrored. In a mirrored image left is right and text cannot be read, while question and answer stay as
    they were: only for data that speak of neither."""


@section
class DataConfig:
    """The data: raw sources, and how they are merged and split."""

    sources: tuple[Source, ...] = ()
    """Raw annotation files, merged in this order."""
    folder: Path | None = None
    """Folder of the merged data; data/<name> by default."""
    split: SplitConfig = SplitConfig()
    """Fractions of the images by split, for sources without a split of their own."""
    seed: int = 0
    """Seed of the split and of the choice of question templates."""
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Images with more pixels are dropped before they are decoded."""
    vqa_target: Literal["majority", "sample"] = "majority"
    """Target of a question with several answers: the most frequent one, or one sampled in each epoch."""
    balance: Literal["none", "category"] = "none"
    """category = training samples of smaller categories are repeated within an epoch, until each category has as many as the largest; those
    without a category stay as they are. A source's records name their category in a field `category`. none = every sample once."""
    augmentation: AugmentationConfig | None = None
    """Random augmentation of training images; none by default."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of processes that check images during the merge; by default one per core that it may use (affinity, container limit)."""
