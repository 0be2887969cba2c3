"""Shared by all commands: --config, key=value overrides, --debug, one-line errors with an exit status."""

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, get_args, get_origin

import config as configuration
from atomic_io import disk_full_reason, free_bytes
from cpu_cores import limit_threads
from error_reporting import report_error
from errors import Interrupted, TesseraError, UsageError

# Idle threads of GNU OpenMP busy-wait for a long time, which slows down other processes on the same cores. Two training runs at
# once on two cores: 30 samples/s each, 64 with a short spin; one run alone: 134 and 128. The variable is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# bitsandbytes warns at import that an optional kernel from the hub is missing. The warning has no consequence.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


_FULL_BELOW_BYTES = 1 << 20
"""Free space below which a file system is named as full."""


class Parser(argparse.ArgumentParser):
    """Argument parser of a command.

    Args:
        description: shown by --help.
        takes_config: also accept --config and key=value overrides.
        renamed: old names of options and subcommands and their new ones; an error about an old name gives the new one.
        kwargs: passed to argparse.ArgumentParser.
    """

    def __init__(self, description: str, takes_config: bool = True, renamed: Mapping[str, str] | None = None, **kwargs: Any):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.has_subcommands = False
        self.renamed = dict(renamed or {})
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if takes_config:
            self.add_argument(
                "--config",
                type=Path,
                default=configuration.DEFAULT,
                metavar="YAML",
                help="configuration of the experiment (default: %(default)s)",
            )
            self.add_argument(
                "overrides",
                nargs="*",
                metavar="key=value",
                help="override a key of the configuration, e.g. train.per_device_train_batch_size=8",
            )
            self.epilog = "keys of the configuration:\n" + "\n".join(describe(configuration.Config))

    def add_subcommands(self) -> "argparse._SubParsersAction[Parser]":
        """Add subcommands; each is created by `add_parser(name, description=..., help=..., takes_config=...)` of the return value."""
        self.has_subcommands = True
        return self.add_subparsers(dest="part", required=True, metavar="PART")

    def error(self, message: str) -> NoReturn:
        words = re.findall(r"[\w-]+", message)
        hints = [f"; {old} is called {new} now" for old, new in self.renamed.items() if old in words]
        raise UsageError(f"{message}{''.join(hints)} (--help lists the arguments)")


def run(main: Callable[[argparse.Namespace], int | None], parser: Parser, arguments: list[str] | None = None) -> NoReturn:
    """Parse the arguments, call `main` and exit the process.

    Exit status: 0 success, 1 failure, 2 wrong arguments, 128 + the number of a signal that ended it (130: Ctrl-C).

    Args:
        main: receives the parsed arguments. If the parser takes a configuration, `arguments.config` is the loaded Config and
            `arguments.config_path` the file it was read from.
        parser: parser of the command.
        arguments: command line without the program name; None: sys.argv.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    limit_threads()
    if not debug:
        silence_libraries()
    try:
        # A launcher ends ranks that wait for another one in a library, where no handler of Python would run.
        with contextlib.nullcontext() if launched else sigterm_as_exception():
            status = main(_parse(parser, arguments)) or 0
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        reported = _report(error, debug, launched)
        if reported is None:
            raise
        status = reported
    if launched and status:
        # Nothing may follow the error: at exit, torch would print that its process group was not destroyed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _parse(parser: Parser, arguments: list[str] | None) -> argparse.Namespace:
    # parse_intermixed_args does not support subcommands.
    parsed = parser.parse_args(arguments) if parser.has_subcommands else parser.parse_intermixed_args(arguments)
    if hasattr(parsed, "overrides"):
        parsed.config_path = parsed.config
        parsed.config = configuration.load(parsed.config, parsed.overrides)
    return parsed


@contextlib.contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Context in which SIGTERM ends the command as Ctrl-C does, with `Interrupted`: temporary files are removed and worker processes
    end. A second one ends it at once. Handlers that a command sets itself, such as a server's, take precedence.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    pid = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != pid:
            signal.raise_signal(number)  # a forked child without handlers of its own
        raise Interrupted(number, "ended by SIGTERM")

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _report(error: BaseException, debug: bool, launched: bool) -> int | None:
    """Print an error as one line and return the exit status; None for one whose traceback is to be shown."""
    if isinstance(error, KeyboardInterrupt):
        # All ranks stop together, so rank 0 alone says so.
        if not isinstance(error, Interrupted) or os.environ.get("RANK", "0") == "0":
            print(error if isinstance(error, Interrupted) else "interrupted", file=sys.stderr)
        return error.exit_status if isinstance(error, Interrupted) else 130
    if isinstance(error, BrokenPipeError):
        # The reader of standard output (such as `head`) has exited.
        _discard_output()
        return 0
    message = str(error) if isinstance(error, TesseraError) else _system_message(error)
    is_defect = message is None
    if (debug or is_defect) and not launched:
        return None
    report_error(f"{type(error).__name__}: {error}" if message is None else message, error, show_traceback=debug or is_defect)
    return error.exit_status if isinstance(error, TesseraError) else TesseraError.exit_status


def _system_message(error: BaseException) -> str | None:
    """One line for a full disk or a file that the system refuses, such as in a read-only folder; None for a defect of the program."""
    filename = getattr(error, "filename", None) if isinstance(error, OSError) else None
    if (reason := disk_full_reason(error)) is not None:
        return f"{filename or _unnamed_file()}: cannot be written: {reason}"
    return None if filename is None else f"{filename}: {getattr(error, 'strerror', None) or error}"


def _unnamed_file() -> str:
    """What to say for a file that the error of a full disk does not name."""
    try:
        print(flush=True)
    except OSError:
        _discard_output()
        return "standard output"
    folders = [Path(), *map(Path, ("data", "checkpoints", "results")), Path(tempfile.gettempdir())]
    full = dict.fromkeys(str(folder.absolute()) for folder in folders if folder.exists() and free_bytes(folder) < _FULL_BELOW_BYTES)
    return f"a file in one of {', '.join(full)}" if full else "a file"


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def silence_libraries() -> None:
    """Silence Python warnings and the log messages and progress bars of the Hugging Face libraries."""
    logging.captureWarnings(True)
    for library in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        # Takes effect if the library is imported later.
        os.environ.setdefault(library, "error")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


def ask(prompt: str) -> str | None:
    """Read a line from standard input, stripped; None for `exit` and at the end of input."""
    try:
        line = input(prompt).strip()
    except EOFError:
        print()
        return None
    return None if line == "exit" else line


def describe(section: Any, prefix: str = "") -> list[str]:
    """Help lines `key: type = default`, each followed by the documentation of the key, for a configuration section and its subsections."""
    lines: list[str] = []
    hints = typing.get_type_hints(section)
    documentation = {
        name: field.description
        for kind in reversed(section.__mro__)
        for name, field in getattr(kind, "__pydantic_fields__", {}).items()
        if field.description
    }
    for field in dataclasses.fields(section):
        hint, key = hints[field.name], prefix + field.name
        nested = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        default = "" if field.default is dataclasses.MISSING or nested else f" = {_as_yaml(field.default)}"
        lines.append(f"  {key}: {_type_name(hint)}{default}")
        is_discriminator = get_origin(hint) is Literal and len(get_args(hint)) == 1
        lines.append(f"      {'Selects the variant.' if is_discriminator else ' '.join(documentation.get(field.name, '').split())}")
        for kind in nested:
            if len(nested) > 1:
                lines.append(f"    {key}, {kind.__doc__}")
            lines += describe(kind, key + ".")
        for member in _list_members(hint):
            lines.append(f"    {key}.N, {member.__doc__}")
            lines += ["  " + line for line in describe(member, key + ".N.")]
    return lines


def _list_members(hint: Any) -> list[Any]:
    """The dataclasses that a tuple[...] field may contain."""
    if get_origin(hint) is not tuple:
        return []
    member = get_args(hint)[0]
    while get_origin(member) is typing.Annotated:
        member = get_args(member)[0]
    return [kind for kind in (member, *get_args(member)) if dataclasses.is_dataclass(kind)]


def _as_yaml(value: Any) -> str:
    """A default value in YAML notation."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join("..." if dataclasses.is_dataclass(part) else _as_yaml(part) for part in value) + "]"
    return str(value)


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"list of {_type_name(get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    if get_args(hint) and get_origin(hint) is not dict:
        return " | ".join(dict.fromkeys(_type_name(part) for part in get_args(hint)))
    return {"str": "text", "Path": "path", "dict": "mapping"}.get(getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint)))
