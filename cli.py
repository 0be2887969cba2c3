"""Shared by all commands: --config, key=value overrides, --debug, one-line errors with an exit status."""

import argparse
import dataclasses
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import config as configuration
from cpu_cores import limit_threads
from error_reporting import report_error
from errors import Interrupted, TesseraError, UsageError

# Idle threads of GNU OpenMP busy-wait for a long time, which slows down other processes on the same cores. Two training runs at
# once on two cores: 30 samples/s each, 64 with a short spin; one run alone: 134 and 128. The variable is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# bitsandbytes warns at import that an optional kernel from the hub is missing. The warning has no consequence.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


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
        # parse_intermixed_args does not support subcommands.
        parsed = parser.parse_args(arguments) if parser.has_subcommands else parser.parse_intermixed_args(arguments)
        if hasattr(parsed, "overrides"):
            parsed.config_path = parsed.config
            parsed.config = configuration.load(parsed.config, parsed.overrides)
        status = main(parsed) or 0
    except TesseraError as error:
        if debug and not launched:
            raise
        report_error(str(error), error, debug)
        status = error.exit_status
    except Interrupted as stop:
        # All ranks stop together, so rank 0 alone says so.
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr)
        status = stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of standard output (such as `head`) has exited.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        # Such as a read-only folder or a full disk. Without a file name it is a defect of the program, not the user's mistake.
        defect = error.filename is None
        if (debug or defect) and not launched:
            raise
        report_error(f"{error.filename}: {error.strerror or error}" if not defect else repr(error), error, debug or defect)
        status = TesseraError.exit_status
    except Exception as error:
        if not launched:
            raise
        report_error(f"{type(error).__name__}: {error}", error, show_traceback=True)
        status = TesseraError.exit_status
    if launched and status:
        # Nothing may follow the error: at exit, torch would print that its process group was not destroyed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


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
