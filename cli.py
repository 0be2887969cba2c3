"""Shared by all commands: --config, key=value overrides, --debug, one-line errors with an exit status.

With several processes the error that comes first is printed, with its rank; what other ranks meet afterwards, such as a closed
connection, is not. torchrun and accelerate name a file for each process (TORCHELASTIC_ERROR_FILE), whose text their own summary shows.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import config as configuration
from atomic_io import disk_full_reason, free_bytes
from config_schema import describe
from cpu_cores import limit_threads
from errors import Interrupted, TesseraError, UsageError, remember_settings

# Idle threads of GNU OpenMP busy-wait for a long time, which slows down other processes on the same cores. Two training runs at
# once on two cores: 30 samples/s each, 64 with a short spin; one run alone: 134 and 128. The variable is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# bitsandbytes warns at import that an optional kernel from the hub is missing. The warning has no consequence.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


_FULL_BELOW_BYTES = 1 << 20
"""Free space below which a file system is named as full."""


_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
"""The beginning of an override, such as `train.seed=`."""
_OVERRIDE_OF_A_SECTION = re.compile(rf"({'|'.join(typing.get_type_hints(configuration.Config))})\.[\w.]+=")
"""The same behind an option whose own values contain a `=`."""


class _HelpAll(argparse.Action):
    """Prints the help of a command with the keys of the configuration."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(parser.format_help() + "\nkeys of the configuration:\n" + "\n".join(describe(configuration.Config)))
        sys.exit(0)


class _AtLeast(argparse.Action):
    """Stores a number that is not below `minimum`."""

    def __init__(self, *args: Any, minimum: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.minimum = minimum

    def __call__(self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, _option: str | None = None) -> None:
        if value < self.minimum:
            raise UsageError(f"{self.option_strings[0]} {value}: expected at least {self.minimum}")
        setattr(namespace, self.dest, value)


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
        self._parts: argparse._SubParsersAction[Parser] | None = None
        self.renamed = dict(renamed or {})
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if takes_config:
            explained = "configuration of the experiment (default: %(default)s)"
            self.add_argument("--config", type=Path, default=configuration.DEFAULT, metavar="YAML", help=explained)
            explained = "override a key of the configuration, e.g. train.per_device_train_batch_size=8"
            self.add_argument("overrides", nargs="*", metavar="key=value", help=explained)
            explained = "show this help and all keys of the configuration, and exit"
            self.add_argument("--help-all", action=_HelpAll, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=explained)

    def add_part(self, name: str, description: str, run: Callable[[argparse.Namespace], None], takes_config: bool = False) -> "Parser":
        """Add a subcommand, which `run` carries out: `command` of the parsed arguments."""
        if self._parts is None:
            self._parts = self.add_subparsers(dest="part", required=True, metavar="PART")
        part = self._parts.add_parser(name, description=description, help=description, takes_config=takes_config)
        part.set_defaults(command=run)
        return part

    def add_number(self, option: str, default: int | None, help: str, minimum: int = 1) -> None:
        """Add an option that takes a whole number; one below `minimum` is a usage error. help: without the default."""
        help = help if default is None else f"{help} (default: %(default)s)"
        self.add_argument(option, type=int, default=default, metavar="N", action=_AtLeast, minimum=minimum, help=help)

    def options_with_values(self) -> dict[str, re.Pattern[str] | None]:
        """Options, those of subcommands included -> the pattern of an override behind them; None where one value follows."""
        patterns: dict[str, re.Pattern[str] | None] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for part in set(action.choices.values()):
                    patterns |= part.options_with_values()
            elif action.nargs is None:
                patterns |= dict.fromkeys(action.option_strings)
            elif "=" in str(action.metavar):
                patterns |= dict.fromkeys(action.option_strings, _OVERRIDE_OF_A_SECTION)
        return patterns

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
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    limit_threads()
    if not debug:
        silence_libraries()
    try:
        # A launcher ends ranks that wait for another one in a library, where no handler of Python would run.
        with contextlib.nullcontext() if launched else sigterm_as_exception():
            status = main(_parse(parser, given)) or 0
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        reported = _report(error, debug, launched)
        if reported is None:
            raise
        status = reported
    finally:
        remember_settings([])  # for another command in this process
    if launched and status:
        # Nothing may follow the error: at exit, torch would print that its process group was not destroyed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    rest, overrides = _take_overrides(parser, arguments)
    parsed = parser.parse_args(rest)
    # "settings" where the command has no configuration of its own.
    name = next((name for name in ("overrides", "settings") if hasattr(parsed, name)), None)
    if name is None:
        if overrides:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        return parsed
    setattr(parsed, name, [*getattr(parsed, name), *overrides])
    if name == "overrides":
        parsed.config_path = parsed.config
        named = ["--config", str(parsed.config)] if parsed.config != configuration.DEFAULT else []
        remember_settings([*named, *parsed.overrides])
        parsed.config = configuration.load(parsed.config, parsed.overrides)
    return parsed


def _take_overrides(parser: Parser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without overrides, and these: they may stand anywhere, also behind an option that takes several values."""
    rest: list[str] = []
    overrides: list[str] = []
    option = ""
    options = parser.options_with_values()
    for position, argument in enumerate(arguments):
        if argument == "--":
            rest += arguments[position:]
            break
        pattern = options.get(option, _OVERRIDE)
        if pattern is not None and pattern.match(argument) and not Path(argument).exists():
            overrides.append(argument)
            continue
        rest.append(argument)
        if argument.startswith("-"):
            option = argument
        elif options.get(option, _OVERRIDE) is None:
            option = ""  # its one value was this
    return rest, overrides


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
    rank = os.environ.get("RANK", "0")
    if isinstance(error, KeyboardInterrupt):
        # All ranks stop together, so rank 0 alone says so.
        if not isinstance(error, Interrupted) or rank == "0":
            print(error if isinstance(error, Interrupted) else "interrupted", file=sys.stderr)
        return error.exit_status if isinstance(error, Interrupted) else 130
    if isinstance(error, BrokenPipeError):
        # The reader of standard output (such as `head`) has exited.
        _discard_output()
        return 0
    message = str(error) if isinstance(error, TesseraError) else _system_message(error)
    show_traceback = debug or message is None
    if show_traceback and not launched:
        return None
    message = message or f"{type(error).__name__}: {error}"
    if launched:
        message = f"rank {rank}: {message}"
    if not launched or _is_first_error(message, show_traceback):
        if show_traceback:
            traceback.print_exception(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
    return error.exit_status if isinstance(error, TesseraError) else TesseraError.exit_status


def _is_first_error(message: str, show_traceback: bool) -> bool:
    """Write the launcher's error file, in the form that torch.distributed.elastic reads. Returns whether no other rank of this launch on
    this machine has failed yet; True without such a file, so that no error is lost."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    extra = {"timestamp": str(int(time.time()))} | ({"py_callstack": traceback.format_exc()} if show_traceback else {})
    Path(error_file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
    # <log folder>/attempt_<n>/<local rank>/error.json
    try:
        os.close(os.open(Path(error_file).parent.parent / "first_error", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


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
