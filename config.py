"""Configuration of an experiment: one YAML file, read by every command into the same typed sections."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from answering.config import DecodingConfig, RerankConfig
from config_schema import nearest_key, section
from dataset.config import DataConfig
from dataset.object_storage import StorageError
from dataset.source_config import HubSource
from dataset.source_files import missing_file
from errors import UsageError
from evaluation.config import EvalConfig
from model.config import ModelConfig
from model.siglip_qwen.config import SiglipQwenConfig
from renamed_keys import new_key
from serving.config import ServeConfig
from serving.search.config import SearchConfig
from training.config import TrainConfig
from visual.config import is_missing_folder

S = TypeVar("S")

DEFAULT = Path("configs/tiny.yaml")


@section
class Config:
    """Configuration of an experiment."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Name of the experiment: letters, digits, `.`, `_`, `-`. The default folders are data/<name>, checkpoints/<name>, results/<name>."""
    data: DataConfig = DataConfig()
    """Data sources, merging and splits."""
    model: ModelConfig = SiglipQwenConfig()
    """The model: its family, pre-trained parts, LoRA and quantisation."""
    train: TrainConfig = TrainConfig()
    """Training stages, optimizer and batches."""
    decoding: DecodingConfig = DecodingConfig()
    """Generation of candidate answers."""
    rerank: RerankConfig = RerankConfig()
    """Reranking of candidate answers."""
    eval: EvalConfig = EvalConfig()
    """Evaluation: systems, metrics and controls."""
    serve: ServeConfig = ServeConfig()
    """HTTP service."""
    search: SearchConfig = SearchConfig()
    """Image search."""

    @property
    def data_folder(self) -> Path:
        """Folder of the merged data."""
        return self.data.folder or Path("data") / self.name

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path("checkpoints") / self.name

    @property
    def result_folder(self) -> Path:
        """Folder of predictions and reports."""
        return Path("results") / self.name

    @property
    def search_index_uri(self) -> str:
        """Folder or object-storage URI of the image search index."""
        return self.search.index or str(self.data_folder / "search")


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1 and reads 1e-4 as text; this loader reads it as a number, as YAML 1.2 does."""


_Yaml12Loader.yaml_implicit_resolvers = {first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789"))


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a configuration file and apply `key=value` overrides.

    Raises:
        UsageError: a key is unknown or a value has the wrong type; the message names the file and the key.
    """
    return validate(Config, read(path, overrides), path)


def validate(section: type[S], raw: dict[str, Any], path: Path) -> S:
    """The keys of a file as a section. Raises UsageError naming the file and every key that is unknown or has a wrong type."""
    try:
        # In JSON mode, strict validation still converts a string to a path and a list to a tuple.
        return TypeAdapter(section).validate_json(json.dumps(raw))
    except ValidationError as error:
        lines = [f"{_key(problem['loc'])}: {_describe_problem(problem, _key(problem['loc']), section)}" for problem in error.errors()]
        raise UsageError(f"{path}: " + "; ".join(lines)) from error
    except TypeError as error:
        raise UsageError(f"{path}: {error}; only text, numbers, true/false, lists and mappings are expected") from error


def read(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The keys of a configuration file with `key=value` overrides, as written. Raises UsageError when it cannot be read."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: expected a mapping with the keys name, data, model, ..., found {type(raw).__name__}")
    for override in overrides or []:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in the raw mapping; a number in the key is a list index."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"argument '{override}': expected key=value, such as train.per_device_train_batch_size=8")
    try:
        value = yaml.load(text, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"argument '{override}': the value is not YAML: {' '.join(str(error).split())}") from error
    node: Any = raw
    *parents, last = key.split(".")
    for key_part in parents:
        if isinstance(node, dict) and node.get(key_part) is None:
            node[key_part] = {}
        node = node[_index(node, key_part, key)]
        if not isinstance(node, dict | list):
            raise UsageError(f"argument '{key}': '{key_part}' has no keys below it")
    node[_index(node, last, key)] = value


def _index(node: dict[str, Any] | list[Any], key_part: str, key: str) -> Any:
    """A part of a key as an index of a mapping or list."""
    if isinstance(node, dict):
        return key_part
    if not key_part.isdigit() or int(key_part) >= len(node):
        raise UsageError(f"argument '{key}': '{key_part}' is not an index of a list of {len(node)}")
    return int(key_part)


def _key(location: tuple[int | str, ...]) -> str:
    if len(location) > 1 and location[0] == "model":
        location = (location[0], *location[2:])  # the second part is the family that chose the class
    return ".".join(str(key_part) for key_part in location) or "file"


def _describe_problem(problem: Any, key: str, section: type) -> str:
    if problem["type"] == "unexpected_keyword_argument":
        location = [str(key_part) for key_part in problem["loc"]]
        if renamed := new_key(location[0], location[-1]):
            return f"unknown key; it is called {renamed} now"
        nearest = nearest_key(section, key)
        return f"unknown key; the nearest is {nearest}" if nearest else "unknown key (--help-all lists all)"
    if problem["type"] in ("missing", "missing_argument"):
        return "this key is missing"
    if problem["type"].startswith("union_tag"):
        # The message names the tag; printing the whole mapping would add nothing.
        return str(problem["msg"]).lower()
    return f"{problem['msg'].lower()}, found {problem['input']!r}"


def check_source_paths(config: Config) -> None:
    """Raise UsageError for the first key under data.sources whose file or folder does not exist."""
    for i, source in enumerate(config.data.sources):
        if isinstance(source, HubSource) and source.is_missing:
            raise UsageError(f"data.sources.{i}.path: {source.path} does not exist (neither a folder nor a name on the Hub, OWNER/NAME)")
        for key in (*source.file_keys, "images"):
            named = getattr(source, key)
            try:
                problem = None if named is None else missing_file(named, are_folders=key == "images" or source.format == "folder")
            except StorageError as error:
                raise UsageError(f"data.sources.{i}.{key}: {error}") from error
            if problem is not None:
                raise UsageError(f"data.sources.{i}.{key}: {problem}")


def check_model_paths(config: Config, *keys: str) -> None:
    """Raise UsageError for the first of `keys` (such as "model.vision") whose value is a folder that does not exist."""
    for key in keys:
        value: Any = config
        for key_part in key.split("."):
            value = value[int(key_part)] if key_part.isdigit() else getattr(value, key_part)
        if value is not None and is_missing_folder(value):
            raise UsageError(f"{key}: {value} does not exist (neither a local folder nor a hub name like Qwen/Qwen3-1.7B)")
