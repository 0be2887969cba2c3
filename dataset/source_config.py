"""Configuration of the sources: which files hold the records and the images, in which format."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field

from config_schema import section
from dataset.remote_files import FilePath, is_url
from dataset.source_files import FilePaths, PathOrUrl, matching_files
from errors import UsageError

Split = Literal["train", "validation", "test"]


Questions = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]
"""Question templates: at least one, none blank."""


def _check_prompt(text: str) -> str:
    """The text without blank space around it. Raises ValueError when it has an image placeholder."""
    if "<image>" in text:
        raise ValueError("a prompt cannot contain <image>")
    return text.strip()


def _check_hub_path(path: str) -> str:
    """The path. Raises ValueError when it is a URL."""
    if is_url(path):
        raise ValueError(
            "a URL; expected OWNER/NAME of a data set on the Hub or a local folder; table, messages and webdataset read files at URLs"
        )
    return path


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


@section
class AiChallengerSource(SourceBase):
    """AI Challenger captions: a JSON list of {image_id | image, caption | conversations: [Chinese sentences]}."""

    format: Literal["ai_challenger"]
    annotations: FilePaths
    """The JSON file, or several."""
    questions: Questions = ("这幅图像描述了什么？", "这幅图像中有什么？")
    """Question templates; a hash of the sample picks one, all with equal probability."""


@section
class LlavaSource(SourceBase):
    """LLaVA conversations: a JSON list of {id, image, conversations: [{from: human | gpt, value}]}."""

    format: Literal["llava"]
    annotations: FilePaths
    """The JSON file, or several."""


@section
class CocoCaptionsSource(SourceBase):
    """Official COCO captions: {images: [{id, file_name}], annotations: [{image_id, caption}]}."""

    format: Literal["coco_captions"]
    annotations: FilePaths
    """The JSON file, or several."""
    questions: Questions = ("What does this picture show?", "Describe the picture in one sentence.")
    """Question templates; a hash of the sample picks one, all with equal probability."""


@section
class VqaV2Source(SourceBase):
    """Official VQA v2: a question file and an annotation file with ten answers per question."""

    format: Literal["vqav2"]
    file_keys: ClassVar[tuple[str, ...]] = ("questions", "annotations")
    questions: FilePaths
    """The question JSON file, or several."""
    annotations: FilePaths
    """The annotation JSON file, or as many as there are question files."""
    prompt: PromptText | PromptByLanguage | None = PromptByLanguage()
    """As for every source; by default a sentence that asks for a word or phrase."""


@section
class VqaMetadataSource(SourceBase):
    """A JSON list of {id, question, answers, image_file}, or TextVQA's own file: {data: [{question_id, image_id, ...}]}."""

    format: Literal["vqa_metadata"]
    annotations: FilePaths
    """The JSON file, or several."""
    prompt: PromptText | PromptByLanguage | None = PromptByLanguage()
    """As for every source; by default a sentence that asks for a word or phrase."""


@section
class MessagesSource(SourceBase):
    """JSONL, JSON or Parquet rows of {messages: [{role, content}], images: [name | {bytes, path}]}, or with `conversations`, `image`."""

    format: Literal["messages"]
    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: FilePaths
    """The .jsonl, .json (one list) or .parquet file, or several."""


@section
class FlickrCaptionsSource(SourceBase):
    """Captions as Flickr8k and Flickr30k have them: lines of `name.jpg#0<tab>caption`, or of `name.jpg,caption` after a header."""

    format: Literal["flickr_captions"]
    annotations: FilePaths
    """The text file, or several."""
    questions: Questions = ("What does this picture show?", "Describe the picture in one sentence.")
    """Question templates; a hash of the sample picks one, all with equal probability."""


@section
class FolderSource(SourceBase):
    """A folder of images, each with a text file of the same name that holds its captions, one a line."""

    format: Literal["folder"]
    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: FilePaths
    """The folder, or several; its subfolders are read too."""
    questions: Questions = ("What does this picture show?", "Describe the picture in one sentence.")
    """Question templates; a hash of the sample picks one, all with equal probability."""

    @property
    def image_folder(self) -> FilePath:
        """The folder itself."""
        return self.images or self.annotation_files[0]


@section
class Columns:
    """Names of the columns of a table that has none of the known layouts, or a text with names in braces: "Which {attribute} is it?"."""

    image: str | None = None
    """The image or the list of images: file names, encoded bytes, {bytes, path} or data: URLs."""
    messages: str | None = None
    """A conversation: a list of {role, content} or {from, value}."""
    texts: str | None = None
    """A conversation: a list of {user, assistant}."""
    question: str | None = None
    """A question."""
    answer: str | None = None
    """Its answer, or a list of answers of several people; with `choices` an index, a letter or a text of them."""
    choices: str | None = None
    """The list of possible answers, which are written below the question."""
    caption: str | None = None
    """A caption or a list of captions."""
    id: str | None = None
    """What names the record in sample ids; by default its position."""
    category: str | None = None
    """What the sample is about."""
    split: str | None = None
    """The split that a record states for itself: train..., val... or test..."""


@section
class TabularSource(SourceBase):
    """Keys of the sources that are tables."""

    columns: Columns = Columns()
    """Names of the columns, where they are not those of a known layout."""
    questions: Questions = ("What does this picture show?", "Describe the picture in one sentence.")
    """Question templates of captions; a hash of the sample picks one, all with equal probability."""
    prompt: PromptText | PromptByLanguage | None = "auto"
    """As for every source."""


@section
class TableSource(TabularSource):
    """A CSV, TSV, JSON, JSON lines or Parquet file with a record in each row."""

    format: Literal["table"]
    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: FilePaths
    """The .csv, .tsv, .json (one list), .jsonl or .parquet file, or several."""


@section
class WebDatasetSource(TabularSource):
    """Tar shards of samples: the members of one name are a record, with an image, a .txt caption, or a .json object of columns."""

    format: Literal["webdataset"]
    file_keys: ClassVar[tuple[str, ...]] = ("shards",)
    shards: FilePaths
    """The shards, with numbers in braces or wildcards: raw/cc3m/{00000..00331}.tar."""


@section
class HubSource(TabularSource):
    """A data set that `datasets.load_dataset` reads, from the Hugging Face Hub or a folder."""

    file_keys: ClassVar[tuple[str, ...]] = ()
    format: Literal["hub"]
    path: Annotated[str, Field(min_length=1), AfterValidator(_check_hub_path)]
    """Name on the Hub, such as HuggingFaceM4/the_cauldron, or a folder."""
    subset: str | None = None
    """Subset (configuration) of the data set; needed where it has several."""
    split: str | None = None  # type: ignore[assignment]  # a name that the data set gives to a split
    """Split of the data set that is read, such as train or validation[:1000]; by default all. Samples keep it; but where the data set has
    one alone and none is named here, a hash of the image content decides."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; by default main."""
    image_subset: str | None = None
    """Subset whose rows are the images, found by their id, where they are apart from the questions, as in GQA."""

    @property
    def is_missing(self) -> bool:
        """Whether `path` is neither a folder nor a name on the Hub, OWNER/NAME."""
        return not Path(self.path).is_dir() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path, re.ASCII) is None

    @property
    def fixed_split(self) -> Split | None:
        """None: `split` names what is read."""
        return None

    @property
    def annotation_files(self) -> list[FilePath]:
        """The folder or name."""
        return [Path(self.path)]

    @property
    def image_folder(self) -> FilePath:
        """The folder of the data set."""
        return self.images or Path(self.path)


Source = Annotated[
    AiChallengerSource
    | LlavaSource
    | CocoCaptionsSource
    | VqaV2Source
    | VqaMetadataSource
    | MessagesSource
    | FlickrCaptionsSource
    | FolderSource
    | TableSource
    | WebDatasetSource
    | HubSource,
    Field(discriminator="format"),
]


def source_names(source_configs: tuple[Source, ...]) -> list[str]:
    """The name of each source: its `name`, else its format, numbered from the second use on.

    Raises UsageError when there are no sources or two have the same `name`.
    """
    if not source_configs:
        raise UsageError("data.sources: empty; name at least one source")
    explicit_names = [source.name for source in source_configs if source.name is not None]
    if duplicates := [name for name in explicit_names if explicit_names.count(name) > 1]:
        raise UsageError(f"data.sources: the name '{duplicates[0]}' is used twice")
    names: list[str] = []
    for source in source_configs:
        defaults = itertools.chain([source.format], (f"{source.format}-{number}" for number in itertools.count(2)))
        names.append(source.name or next(name for name in defaults if name not in (*explicit_names, *names)))
    return names
