"""Downloads pre-trained models from the Hugging Face hub or from ModelScope.

Files from the hub go to its cache, where from_pretrained finds them by name; files from ModelScope go to a folder. Interrupted
downloads are resumed, also within a file, and cached files are skipped.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from errors import TesseraError, UsageError
from progress import Progress

INSTALL_MODELSCOPE = "--source modelscope needs its client: pip install modelscope"

RESUMABLE_BYTES = 10 << 20
"""Files of at least this size are downloaded resumably. The hub's own client restarts a file in a new process."""

_TEXT_FILES = re.compile(r"[^/]+\.(json|txt|jinja|model)|README\.md|LICENSE[^/]*")
_WEIGHT_FILES = (re.compile(r"model(-\d+-of-\d+)?\.safetensors"), re.compile(r"[^/]+\.safetensors"), re.compile(r"pytorch_model[^/]*\.bin"))


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


def verify_download(path: Path, file: RemoteFile, digest: str) -> None:
    """Check a download against its size and hash.

    Args:
        path: downloaded file.
        file: its size in the repository.
        digest: SHA-256 in hexadecimal; other values (Git hashes of small files) are not checked.

    Raises:
        TesseraError: the file is incomplete, or it is corrupt, in which case it is removed.
    """
    size = path.stat().st_size
    if size < file.size:
        raise TesseraError(
            f"{file.path}: download stopped after {format_bytes(size)} of {format_bytes(file.size)}; run the command again to resume"
        )
    with path.open("rb") as content:
        is_sha256 = re.fullmatch(r"[0-9a-f]{64}", digest)
        has_same_hash = not is_sha256 or hashlib.file_digest(content, "sha256").hexdigest() == digest
    if size > file.size or not has_same_hash:
        path.unlink()
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

    @property
    def folder(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def files(self, name: str) -> list[RemoteFile]:
        from huggingface_hub import snapshot_download

        with self._describe_errors(name):
            listing = snapshot_download(name, dry_run=True)
        return [RemoteFile(file.filename, file.file_size or 0, not file.will_download) for file in listing]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        from huggingface_hub import snapshot_download

        with self._describe_errors(name):
            for file in files:
                if file.size >= RESUMABLE_BYTES and not file.is_cached:
                    self._fetch_resumable(name, file)
            return Path(snapshot_download(name, allow_patterns=[file.path for file in files]))

    def _describe_errors(self, name: str) -> AbstractContextManager[None]:
        from huggingface_hub import errors

        return describe_client_errors("the Hugging Face hub", name, errors)

    def _fetch_resumable(self, name: str, file: RemoteFile) -> None:
        """Download a file into the cache as a blob named by its hash; the hub's client then finds it there and only links it."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(name, file.path)
        digest = get_hf_file_metadata(url).etag or ""
        blobs = self.folder / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        if (blobs / digest).exists():
            return
        partial = blobs / f"{digest}.partial"
        start = partial.stat().st_size if partial.exists() else 0
        if start < file.size:
            headers = {**build_hf_headers(), "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                hf_raise_for_status(response)
                self._write(response, partial, start if response.status_code == 206 else 0, file)
        verify_download(partial, file, digest)
        partial.replace(blobs / digest)

    def _write(self, response: Any, partial: Path, start: int, file: RemoteFile) -> None:
        """Write the response body to `partial` from byte `start` on; 0 restarts, for servers that ignore the Range header."""
        with partial.open("r+b" if start else "wb") as out, Progress(file.path, file.size >> 20, "MiB") as progress:
            out.seek(start)
            progress.update(start >> 20)
            for chunk in response.iter_raw():
                before = out.tell() >> 20
                out.write(chunk)
                progress.update((out.tell() >> 20) - before)


@dataclass(frozen=True)
class ModelScope:
    """ModelScope. Downloads go to `target_folder`/<name>, because from_pretrained does not search ModelScope's cache."""

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

        with self._describe_errors(name):
            listing = HubApi().get_model_files(name, recursive=True)
        return [
            RemoteFile(str(file["Path"]), int(file["Size"] or 0), self._is_cached(name, file["Path"], file["Size"])) for file in listing
        ]

    def fetch(self, name: str, files: list[RemoteFile]) -> Path:
        from modelscope import snapshot_download

        with self._describe_errors(name):
            return Path(snapshot_download(name, local_dir=str(self.target_folder / name), allow_patterns=[file.path for file in files]))

    def _describe_errors(self, name: str) -> AbstractContextManager[None]:
        from modelscope.hub import errors  # type: ignore[import-not-found]

        return describe_client_errors("ModelScope", name, errors)

    def _is_cached(self, name: str, path: str, size: int | None) -> bool:
        local = self.target_folder / name / path
        return local.is_file() and local.stat().st_size == size


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
