"""Downloads pre-trained models from the Hugging Face hub or from ModelScope.

A model is named as in the configuration, `name` or `name@revision`. Each hub's own client downloads: from the Hugging Face hub to its
cache, where from_pretrained finds the files by name, from ModelScope to a folder. Complete files are not downloaded again.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from errors import TesseraError, UsageError
from hub_access import work_offline_if_unreachable
from visual.hub_name import HubName
from visual.hub_responses import check_hub_responses, is_safe_path

# The names of files are patterns for the clients, so none may have a wildcard; none has a folder.
_TEXT_FILES = re.compile(r"[\w.-]+\.(json|txt|jinja|model)|README\.md|LICENSE[\w.-]*")
_WEIGHT_FILES = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"[\w.-]+\.safetensors"),
    re.compile(r"pytorch_model[\w.-]*\.bin"),
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model repository: its path there, its size in bytes, and whether it is already on this machine."""

    path: str
    size: int
    is_cached: bool


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

    path: the file in a snapshot. It links to its content, whose name is the SHA-256 of a large file; where the cache has no links, and for
    small files, which have the hash of Git, the size alone is checked. A damaged file is removed, and TesseraError raised.
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
        work_offline_if_unreachable()
        check_hub_responses()

    @property
    def folder(self) -> Path:
        """Folder where downloads are stored."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def files(self, name: str) -> list[RemoteFile]:
        """All files of a model repository. Raises TesseraError when the hub cannot be reached or lacks the model."""
        from huggingface_hub import errors, snapshot_download

        model = _hub_name(name)
        with describe_client_errors("the Hugging Face hub", name, errors):
            listing = snapshot_download(model.repository, revision=model.revision, dry_run=True)
        return [RemoteFile(file.filename, file.file_size or 0, not file.will_download) for file in listing]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        """Download files of a model repository; returns the folder that contains them. Raises TesseraError as `files`."""
        from huggingface_hub import errors, snapshot_download

        model = _hub_name(name)
        with describe_client_errors("the Hugging Face hub", name, errors):
            folder = Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=[file.path for file in files]))
        for file in files:
            if not file.is_cached:
                verify_download(folder / file.path, file)
        return folder


@dataclass(frozen=True)
class ModelScope:
    """ModelScope, with the methods of `Hub`. Downloads go to `folder`/<name>, or <name@revision>, since from_pretrained does not search
    its cache."""

    folder: Path

    def __post_init__(self) -> None:
        try:
            import modelscope  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise UsageError("--source modelscope needs its client: pip install modelscope") from error

    def files(self, name: str) -> list[RemoteFile]:
        from modelscope import HubApi
        from modelscope.hub import errors  # type: ignore[import-not-found]

        model = _hub_name(name)
        with describe_client_errors("ModelScope", name, errors):
            listing = HubApi().get_model_files(model.repository, recursive=True, **_revision(model))
        for file in listing:
            if not is_safe_path(file["Path"]):
                raise TesseraError(f"{name}: ModelScope names a file {file['Path']!r:.200}, which lies outside of its folder")
        return [
            RemoteFile(str(file["Path"]), int(file["Size"] or 0), self._is_cached(name, file["Path"], file["Size"])) for file in listing
        ]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        from modelscope import snapshot_download
        from modelscope.hub import errors

        model, target, patterns = _hub_name(name), self.folder / name, [file.path for file in files]
        with describe_client_errors("ModelScope", name, errors):
            return Path(snapshot_download(model.repository, local_dir=str(target), allow_patterns=patterns, **_revision(model)))

    def _is_cached(self, name: str, path: str, size: int | None) -> bool:
        local = self.folder / name / path
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

    errors: the client's module of exceptions, which do not all derive from OSError or ValueError. Other exceptions are bugs and propagate.
    """
    client_errors = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    expected: tuple[type[Exception], ...] = (OSError, ValueError, *client_errors)
    try:
        yield
    except TesseraError:
        raise
    except expected as error:
        cause = error.__cause__ or error
        if "OfflineModeIsEnabled" in (type(error).__name__, type(cause).__name__):
            message = f"{name}: {source} cannot be reached (no network, or HF_HUB_OFFLINE is set); run the command again"
            raise TesseraError(message) from error
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
