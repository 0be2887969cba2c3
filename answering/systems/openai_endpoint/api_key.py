"""The API key of an endpoint, from the environment or the file .env. It is never written anywhere."""

import os
import re
from pathlib import Path

from dotenv import dotenv_values

from answering.config import OpenAiSystem
from errors import UsageError

NO_KEY = "none"
"""Sent to an endpoint that needs no key, because the client always sends one."""


def api_key(system: OpenAiSystem, where: str, folder: Path = Path()) -> str:
    """The API key in the variable `api_key_env` of a system. The environment takes precedence over the file .env in `folder`.

    where: prefix of the configuration key in messages. Raises UsageError if the key is missing or malformed; no message contains it.
    """
    name = system.api_key_env
    if name is None:
        return NO_KEY
    key = (os.environ.get(name) or _read_dotenv(folder / ".env").get(name) or "").strip()
    where += f"api_key_env: {name}"
    if not key:
        raise UsageError(f"{where} is set neither in the environment nor in {folder / '.env'} (null, if the endpoint needs no key)")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UsageError(f"{where} contains whitespace or other characters that cannot be part of a key")
    return key


def _read_dotenv(path: Path) -> dict[str, str | None]:
    """The variables of a .env file; none if there is no such file. Raises UsageError if it cannot be read."""
    try:
        return dotenv_values(path, interpolate=False) if path.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text") from error
