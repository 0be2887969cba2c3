"""Configuration that all sources share: files, images, splits, limits, and the sentence after questions."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field

from config_schema import section
from dataset.remote_files import FilePath
from dataset.source_files import PathOrUrl, matching_files
from errors import UsageError

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

    images: PathOrUrl | None = None
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
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of this source in the training samples of an epoch, relative to the weights of the others; all sources have one or none has. By
    default every sample is used once."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """How often the training samples of this source are used within an epoch, such as 0.5 or 3; 1 by default."""
    prompt: PromptText | PromptByLanguage | None = None
    """Sentence that says how an answer is wanted. It follows every question of this source on a line of its own, in training and again
    when the trained model is asked a question of this kind and language. One text, or {en: ..., zh: ...}; auto = a sentence
    that asks for a word or phrase after questions with short answers, none elsewhere; null = none, the default."""

    file_keys: ClassVar[tuple[str, ...]] = ("annotations",)
    """Keys that name files with records. A list of files, wildcards, and numbers in braces are allowed in each."""

    @property
    def annotation_files(self) -> list[FilePath]:
        """The files that the records are read from."""
        return [path for key in self.file_keys for path in matching_files(getattr(self, key))]

    def parts(self) -> list[Self]:
        """The source once for each of its files, or pair of files, in order. Raises UsageError when the numbers of a pair differ."""
        files = {key: matching_files(getattr(self, key)) for key in self.file_keys}
        if len({len(paths) for paths in files.values()}) > 1:
            found = " and ".join(f"{len(paths)} in {key}" for key, paths in files.items())
            raise UsageError(f"data.sources: a source of the format {getattr(self, 'format', '')} has pairs of files, but {found}")
        parts = [replace(self, **dict(zip(files, paths, strict=True))) for paths in zip(*files.values(), strict=True)]
        # The folder stated: it is asked for with each record.
        return [replace(part, images=part.image_folder) for part in parts] or [self]

    @property
    def image_folder(self) -> FilePath:
        """Folder that image names are relative to."""
        return self.images or self.annotation_files[0].parent

    @property
    def fixed_split(self) -> Split | None:
        """The split of all samples, if the configuration states it."""
        return self.split

    def prompt_in(self, language: Literal["en", "zh"], task: str = "vqa") -> str | None:
        """The prompt of a question of a task (see `Sample`) in a language; None if it has none."""
        prompt = self.prompt
        if prompt == "auto":
            prompt = PromptByLanguage() if task == "vqa" else None
        return (getattr(prompt, language) if isinstance(prompt, PromptByLanguage) else prompt) or None


BoxType = Literal["real", "norm1", "norm1000"]
"""Coordinates of boxes: pixels, 0 to 1, or 0 to 1000 over the width and the height of the image."""
Rotation = Literal["upright", "stored"]
"""Whether boxes refer to the image as viewers show it, or before the rotation that its EXIF data state."""


@section
class BoxedSource(SourceBase):
    """Keys of the sources whose records may name boxes."""

    bbox_type: BoxType = "real"
    """Coordinates of the boxes in the field `objects` of a record, unless its `bbox_type` says otherwise: real = pixels, norm1 = 0 to 1,
    norm1000 = 0 to 1000."""
    bbox_in_text: BoxType | None = None
    """Coordinates of the boxes that stand in the texts themselves, "bbox_2d": [x1, y1, x2, y2], as Qwen's data have them: Qwen2.5-VL's are
    real, Qwen3-VL's norm1000. They are then checked, written as 0 to 1000, and follow augmentation. null = such texts stay as they are."""
    bbox_rotation: Rotation = "upright"
    """upright = boxes refer to the image as viewers show it; stored = to the image before the rotation that its EXIF data state."""
