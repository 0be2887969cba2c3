"""Exceptions of the project. A command prints the message as one line and exits with `exit_status`."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_settings: list[str] = []
"""The configuration that this process was started with, as arguments of a command."""


def remember_settings(arguments: Sequence[str]) -> None:
    """Keep the configuration of this process, as arguments such as --config C and key=value, for `command`."""
    _settings[:] = arguments


def command(script: str, *arguments: str) -> str:
    """A command to advise, with the configuration that the user gave to this one."""
    return shlex.join(["python", script, *arguments, *_settings])


class TesseraError(Exception):
    """Base class. The message names the file, key or record, what was expected and what was found."""

    exit_status = 1


class UsageError(TesseraError):
    """Wrong command-line argument or configuration, detected before any model is loaded."""

    exit_status = 2


@contextmanager
def loading(config_key: str, name: str) -> Iterator[None]:
    """Context that turns an error while loading a pre-trained model into a UsageError of one line.

    Only RuntimeError and MemoryError pass, which stand for a lack of memory: what the libraries raise for a damaged file has no
    common class (safetensors and tokenizers derive theirs from Exception, transformers runs into a TypeError or AttributeError).

    Args:
        config_key: configuration key that names the model.
        name: folder or hub name.
    """
    try:
        yield
    except (TesseraError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "folder" if Path(name).is_dir() else "hub name (no local folder has this name)"
        raise UsageError(f"{config_key}: cannot load {name} as a {where}: {reason[:300]}") from error


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a signal that ends a process. No error: `except Exception` lets it pass, as it does KeyboardInterrupt.

    number: the signal; message: what to print in the place of "interrupted".
    """

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.number, self.exit_status = number, 128 + number
