"""An exported folder to a repository of the Hugging Face hub.

In: a folder, the name of a repository, a token. Out: one commit there, weights and texts together.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from errors import TesseraError, UsageError

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables that may hold the token, the first that is set. One that `hf auth login` left on disk is not used."""

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
"""Files that an earlier export may have left in the repository under other names: shards of another number."""


def token_from_environment(environment: Mapping[str, str]) -> str:
    """The token. Raises UsageError where none is set."""
    token = next((environment[name].strip() for name in TOKEN_VARIABLES if environment.get(name, "").strip()), "")
    if not token:
        raise UsageError(
            f"--push: the environment variable {TOKEN_VARIABLES[0]} holds no token; huggingface.co/settings/tokens makes one that writes"
        )
    return token


def check_repository(repository: str, token: str) -> None:
    """Know before any model is loaded that the name is one and that the hub knows the token. Raises UsageError, TesseraError."""
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
    """Upload a folder in one commit and return the commit's address. The repository is made, private, where there is none yet.

    Weights of an earlier export that the folder does not replace leave the repository; its other files stay.
    Raises TesseraError when the hub refuses or is out of reach.
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
    """What the hub's client raises, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        raise TesseraError(f"--push {repository}: the Hugging Face hub refuses: {error.server_message or _one_line(error)}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise TesseraError(
            f"--push {repository}: the Hugging Face hub cannot be reached, or broke off: {_one_line(error.__cause__ or error)}"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
