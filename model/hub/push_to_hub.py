"""Uploads an exported folder to a repository of the Hugging Face hub, in one commit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from errors import TesseraError, UsageError

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables with the token; the first one that is set is used. Tokens stored by `hf auth login` are not used."""

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
"""Weight files that an upload deletes if it does not replace them, such as shards of an earlier export."""


def token_from_environment(environment: Mapping[str, str]) -> str:
    """The token. Raises UsageError if none is set."""
    token = next((environment[name].strip() for name in TOKEN_VARIABLES if environment.get(name, "").strip()), "")
    if not token:
        raise UsageError(f"--push: {TOKEN_VARIABLES[0]} is not set; create a token with write access at huggingface.co/settings/tokens")
    return token


def check_repository(repository: str, token: str) -> None:
    """Check a repository name and a token before a model is loaded. Raises UsageError when the name is not OWNER/NAME, TesseraError when
    the hub rejects the token or cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"--push {repository}: expected OWNER/NAME: {_one_line(error)}") from error
    if repository.count("/") != 1:
        raise UsageError(f"--push {repository}: expected OWNER/NAME")
    with _translate_hub_errors(repository):
        HfApi(token=token).whoami()


def push(folder: Path, repository: str, token: str) -> str:
    """Upload a folder in one commit and return the commit's URL. A missing repository is created as a private one.

    Weights of an earlier export that the folder does not replace are deleted; other files of the repository stay. Raises TesseraError when
    the hub rejects the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _translate_hub_errors(repository):
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of a Tessera checkpoint", delete_patterns=list(WEIGHT_PATTERNS)
        )
    return str(commit.commit_url)


@contextmanager
def _translate_hub_errors(repository: str) -> Iterator[None]:
    """Convert exceptions of the hub's client to a TesseraError with a message of one line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        raise TesseraError(
            f"--push {repository}: the Hugging Face hub returned an error: {error.server_message or _one_line(error)}"
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise TesseraError(
            f"--push {repository}: the Hugging Face hub cannot be reached or closed the connection: {_one_line(error.__cause__ or error)}"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
