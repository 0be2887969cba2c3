"""Configuration of the sources: which files hold the records and the images, in which format."""

import itertools
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from config_schema import section
from dataset.remote_files import FilePath, is_url
from dataset.source_base import BoxedSource, PromptByLanguage, PromptText, Questions, Rotation, SourceBase, Split
from dataset.source_files import FilePaths
from errors import UsageError


def _check_hub_path(path: str) -> str:
    """The path. Raises ValueError when it is a URL."""
    if is_url(path):
        raise ValueError(
            "a URL; expected OWNER/NAME of a data set on the Hub or a local folder; table, messages and webdataset read files at URLs"
        )
    return path


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
class MessagesSource(BoxedSource):
    """JSONL, JSON or Parquet rows of {messages: [{role, content}], images: [name | {bytes, path}]}, or with `conversations`, `image`."""

    format: Literal["messages"]
    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    path: FilePaths
    """The .jsonl, .json (one list) or .parquet file, or several."""


@section
class RegionQuestions:
    """Questions about a region by the language of its expression, with {expression} or {box} in the place of what is asked about."""

    en: Questions
    """After English expressions."""
    zh: Questions
    """After Chinese ones."""


@section
class RefCocoSource(SourceBase):
    """Referring expressions as RefCOCO, RefCOCO+ and RefCOCOg have them: refs (converted to JSON) and the instances of COCO."""

    format: Literal["refcoco"]
    file_keys: ClassVar[tuple[str, ...]] = ("refs", "instances")
    refs: FilePaths
    """The JSON file with the expressions, [{ref_id, ann_id, image_id, split, sentences: [{sent}]}], or several."""
    instances: FilePaths
    """The JSON file with {images: [{id, file_name}], annotations: [{id, image_id, bbox: [x, y, width, height]}]}, or as many."""
    samples: Annotated[tuple[Literal["locate", "describe"], ...], Field(min_length=1)] = ("locate",)
    """locate = a sample for each expression, whose answer is its box; describe = one for each region, whose answers are its expressions."""
    locate_questions: RegionQuestions = RegionQuestions(
        en=(
            "Locate {expression} in the image and report its bbox coordinates in JSON format.",
            "Where is {expression}? Report its bbox coordinates in JSON format.",
        ),
        zh=("请定位图中的{expression}，并以JSON格式输出其边界框坐标。", "{expression}在哪里？请以JSON格式输出其边界框坐标。"),
    )
    """Questions for a box; a hash of the sample picks one."""
    describe_questions: RegionQuestions = RegionQuestions(
        en=("What is in the box {box}?", "Describe the region {box} of the image in a short phrase."),
        zh=("边界框{box}里是什么？", "请用一个短语描述图中区域{box}。"),
    )
    """Questions about a box; a hash of the sample picks one."""
    bbox_rotation: Rotation = "upright"
    """upright = boxes refer to the image as viewers show it; stored = to the image before the rotation that its EXIF data state."""

    @field_validator("locate_questions")
    @classmethod
    def _names_expression(cls, questions: RegionQuestions) -> RegionQuestions:
        return _with_field(questions, "{expression}")

    @field_validator("describe_questions")
    @classmethod
    def _names_box(cls, questions: RegionQuestions) -> RegionQuestions:
        return _with_field(questions, "{box}")


def _with_field(questions: RegionQuestions, name: str) -> RegionQuestions:
    """The questions. Raises ValueError when one of them does not have a name in braces exactly once."""
    for question in (*questions.en, *questions.zh):
        if question.count(name) != 1:
            raise ValueError(f"{question!r} has {name} {question.count(name)} times; expected once")
    return questions


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
    objects: str | None = None
    """The boxes of a conversation: {bbox: [[x1, y1, x2, y2], ...], ref: [name, ...]}."""


@section
class TabularSource(BoxedSource):
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
    | RefCocoSource
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
