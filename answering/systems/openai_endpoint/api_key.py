"""The key of an endpoint: from the environment, or from the file .env; it is written nowhere."""

import os
import re
from pathlib import Path

from answering.config import OpenAiSystem
from errors import UsageError

NO_KEY = "none"
"""Sent where an endpoint wants no key: the client must send something."""

REDACTED = "***"


def api_key(system: OpenAiSystem, where: str, folder: Path = Path()) -> str:
    """The key that a system's `api_key_variable` names. The environment comes before the file .env in `folder`.

    Raises UsageError, without the key, when it is missing or cannot be one; `where` stands in front of what it names.
    """
    name = system.api_key_env
    if name is None:
        return NO_KEY
    key = (os.environ.get(name) or _read_dotenv(folder / ".env").get(name) or "").strip()
    where += f"api_key_variable: {name}"
    if not key:
        raise UsageError(f"{where} is set neither in the environment nor in {folder / '.env'} (null, if the endpoint wants no key)")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UsageError(f"{where} holds blanks or other characters that no key has")
    return key


def redact(text: str, key: str) -> str:
    """`text` without the key, which an endpoint may repeat in what it says."""
    return text if key == NO_KEY else text.replace(key, REDACTED)


def _read_dotenv(path: Path) -> dict[str, str]:
    """Lines NAME=value; `export`, quotes around the value and lines that begin with # are known. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text") from error
    found = {}
    for line in lines:
        match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
        if match:
            name, value = match.groups()
            quoted = re.fullmatch(r"(['\"])(.*)\1", value)
            found[name] = quoted[2] if quoted else value
    return found
