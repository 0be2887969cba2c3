"""The project's exceptions. A command prints the message as one line; `exit_status` is what it ends with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TesseraError(Exception):
    """Something failed. The message says what, where, and what was expected."""

    exit_status = 1


class UsageError(TesseraError):
    """A wrong argument or configuration: found before any model is loaded."""

    exit_status = 2


@contextmanager
def loading(config_key: str, name: str) -> Iterator[None]:
    """Turn what goes wrong while a pre-trained part is loaded into one line: `what` is the configuration key."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "folder" if Path(name).is_dir() else "hub name (and there is no such folder here)"
        raise UsageError(f"{config_key}: cannot load {name} as a {where}: {reason[:300]}") from error
