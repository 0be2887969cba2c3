"""Downloads pre-trained models from the Hugging Face hub or from ModelScope.

A model is named as in the configuration, `name` or `name@revision`. Each hub's own client downloads: from the Hugging Face hub to its
cache, where from_pretrained finds the files by name, from ModelScope to a folder. Complete files are not downloaded again.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from errors import TesseraError, UsageError
from visual.hub_name import HubName
from visual.hub_responses import check_hub_responses, is_safe_path

INSTALL_MODELSCOPE = "--source modelscope needs its client: pip install modelscope"

# The names of files are patterns for the clients, so none may have a wildcard; none has a folder.
_TEXT_FILES = re.compile(r"[\w.-]+\.(json|txt|jinja|model)|README\.md|LICENSE[\w.-]*")
_WEIGHT_FILES = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"[\w.-]+\.safetensors"),
    re.compile(r"pytorch_model[\w.-]*\.bin"),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model repository.

    Args:
        path: path in the repository.
        size: in bytes.
        is_cached: it is already on this machine.
    """

    path: str
    size: int
    is_cached: bool


class Source(Protocol):
    """A model hub. `files` and `fetch` raise TesseraError with a message of one line when it cannot be reached or lacks the model."""

    def files(self, name: str) -> list[RemoteFile]:
        """All files of a model repository."""
        ...

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        """Download files of a model repository; returns the folder that contains them."""
        ...

    @property
    def folder(self) -> Path:
        """Folder where downloads are stored."""
        ...


def select_files(files: list[RemoteFile]) -> list[RemoteFile]:
    """Select configs, tokenizer, model card, licence, and weights in one format: safetensors if there are any."""
    texts = [file for file in files if _TEXT_FILES.fullmatch(file.path)]
    for kind in _WEIGHT_FILES:
        weights = [file for file in files if kind.fullmatch(file.path)]
        if weights:
            return texts + weights
    return texts


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Raise UsageError when the disk of `folder` has fewer than `needed_bytes` free."""
    existing_parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing_parent).free
    if free < needed_bytes:
        raise UsageError(f"{folder}: the download needs {format_bytes(needed_bytes)}, but only {format_bytes(free)} are free")


def verify_download(path: Path, file: RemoteFile) -> None:
    """Check a file in the hub's cache against the size and hash that the hub states.

    Args:
        path: the file in a snapshot. It links to its content, whose name is the SHA-256 of a large file; where the cache has no links,
            and for small files, which have the hash of Git, the size alone is checked.
        file: its size in the repository.

    Raises:
        TesseraError: the file is damaged; it is removed.
    """
    content = path.resolve()
    with content.open("rb") as opened:
        is_sha256 = re.fullmatch(r"[0-9a-f]{64}", content.name)
        has_same_hash = not is_sha256 or hashlib.file_digest(opened, "sha256").hexdigest() == content.name
    if content.stat().st_size != file.size or not has_same_hash:
        path.unlink()
        content.unlink(missing_ok=True)
        raise TesseraError(f"{file.path} was corrupt and has been removed; run the command again")


def format_bytes(size: float) -> str:
    """A size with its decimal unit, such as 1.5 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


class Hub:
    """The Hugging Face hub. Downloads go to its cache."""

    def __init__(self) -> None:
        check_hub_responses()

    @property
    def folder(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def files(self, name: str) -> list[RemoteFile]:
        from huggingface_hub import snapshot_download

        model = _hub_name(name)
        with self._describe_errors(name):
            listing = snapshot_download(model.repository, revision=model.revision, dry_run=True)
        return [RemoteFile(file.filename, file.file_size or 0, not file.will_download) for file in listing]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        from huggingface_hub import snapshot_download

        model = _hub_name(name)
        with self._describe_errors(name):
            folder = Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=[file.path for file in files]))
        for file in files:
            if not file.is_cached:
                verify_download(folder / file.path, file)
        return folder

    def _describe_errors(self, name: str) -> AbstractContextManager[None]:
        from huggingface_hub import errors

        return describe_client_errors("the Hugging Face hub", name, errors)


@dataclass(frozen=True)
class ModelScope:
    """ModelScope. Downloads go to `target_folder`/<name>, or <name@revision>, since from_pretrained does not search its cache."""

    target_folder: Path

    def __post_init__(self) -> None:
        try:
            import modelscope  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise UsageError(INSTALL_MODELSCOPE) from error

    @property
    def folder(self) -> Path:
        return self.target_folder

    def files(self, name: str) -> list[RemoteFile]:
        from modelscope import HubApi

        model = _hub_name(name)
        with self._describe_errors(name):
            listing = HubApi().get_model_files(model.repository, recursive=True, **_revision(model))
        for file in listing:
            if not is_safe_path(file["Path"]):
                raise TesseraError(f"{name}: ModelScope names a file {file['Path']!r:.200}, which lies outside of its folder")
        return [
            RemoteFile(str(file["Path"]), int(file["Size"] or 0), self._is_cached(name, file["Path"], file["Size"])) for file in listing
        ]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        from modelscope import snapshot_download

        model, patterns = _hub_name(name), [file.path for file in files]
        with self._describe_errors(name):
            return Path(
                snapshot_download(model.repository, local_dir=str(self.target_folder / name), allow_patterns=patterns, **_revision(model))
            )

    def _describe_errors(self, name: str) -> AbstractContextManager[None]:
        from modelscope.hub import errors  # type: ignore[import-not-found]

        return describe_client_errors("ModelScope", name, errors)

    def _is_cached(self, name: str, path: str, size: int | None) -> bool:
        local = self.target_folder / name / path
        return local.is_file() and local.stat().st_size == size


def _hub_name(name: str) -> HubName:
    """Raises UsageError if it is none."""
    hub_name = HubName.parse(name)
    if hub_name is None:
        raise UsageError(f"{name}: expected a hub name such as Qwen/Qwen3-1.7B, or name@revision")
    return hub_name


def _revision(model: HubName) -> dict[str, str]:
    return {} if model.revision is None else {"revision": model.revision}


@contextmanager
def describe_client_errors(source: str, name: str, errors: ModuleType) -> Iterator[None]:
    """Convert a client's network, name and permission errors to a TesseraError with a message of one line.

    Args:
        source: name of the hub, for the message.
        name: model, for the message.
        errors: the client's module of exceptions, which do not all derive from OSError or ValueError. Other exceptions are bugs
            and propagate.
    """
    client_errors = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    expected: tuple[type[Exception], ...] = (OSError, ValueError, *client_errors)
    try:
        yield
    except TesseraError:
        raise
    except expected as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        problem = (
            "cannot be reached (no network?); run the command again to resume"
            if _is_network_error(error)
            else "does not provide this model"
        )
        raise TesseraError(f"{name}: {source} {problem}: {reason or 'no details given'} ({type(cause).__name__})") from error


def _is_network_error(error: BaseException | None) -> bool:
    """Whether an exception or its cause is a network error: httpx and requests have their own classes next to Python's."""
    if error is None:
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint({"ConnectionError", "TransportError", "Timeout"}) or _is_network_error(error.__cause__)
