"""What all commands share: --config, key=value overrides, --debug, errors as one line with an exit status."""

import argparse
import dataclasses
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import config as configuration
from errors import TesseraError, UsageError

# GNU OpenMP's idle threads spin for long. With anything else busy on the same cores that costs: two trainings side by side on
# two cores made 30 samples/s each, and 64 each with a short spin; one alone 134, and 128. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# bitsandbytes says at import that a kernel it would fetch from a hub is not there; nothing follows from it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Parser(argparse.ArgumentParser):
    """Arguments of a command. With `configured`, it also takes --config and key=value overrides.

    `settings` are argparse's own.
    """

    def __init__(self, description: str, takes_config: bool = True, **kwargs: Any):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.has_subcommands = False
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if takes_config:
            self.add_argument(
                "--config", type=Path, default=configuration.DEFAULT, metavar="YAML", help="the experiment (default: %(default)s)"
            )
            self.add_argument(
                "overrides",
                nargs="*",
                metavar="key=value",
                help="override a key of the configuration, e.g. train.per_device_train_batch_size=8",
            )
            self.epilog = "keys of the configuration:\n" + "\n".join(describe(configuration.Config))

    def add_subcommands(self) -> "argparse._SubParsersAction[Parser]":
        """Subcommands: `add_parser(name, description=..., help=..., configured=...)` of what is returned makes one."""
        self.has_subcommands = True
        return self.add_subparsers(dest="part", required=True, metavar="PART")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the arguments)")


def run(main: Callable[[argparse.Namespace], int | None], parser: Parser, arguments: list[str] | None = None) -> NoReturn:
    """Parse, call `main`, end the process: 0 done, 1 failed, 2 wrong arguments. Interrupted: 130.

    `main` gets the parsed arguments; with a configured parser, `arguments.config` is the loaded Config and
    `arguments.config_path` the file that it was read from.
    """
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    if not debug:
        silence_libraries()
    try:
        # argparse cannot mix options and overrides freely where there are subcommands.
        parsed = parser.parse_args(arguments) if parser.has_subcommands else parser.parse_intermixed_args(arguments)
        if hasattr(parsed, "overrides"):
            parsed.config_path = parsed.config
            parsed.config = configuration.load(parsed.config, parsed.overrides)
        status = main(parsed) or 0
    except TesseraError as error:
        if debug:
            raise
        rank = int(os.environ.get("RANK", "0"))
        # Of several processes, one says what is wrong with the arguments of all.
        if not (rank and isinstance(error, UsageError)):
            print(f"error: process {rank}: {error}" if rank else f"error: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output (head, say) is gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        # A folder that may not be written to, a full disk; without a file's name it is no matter of the user's.
        if debug or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        status = TesseraError.exit_status
    sys.exit(status)


def silence_libraries() -> None:
    """Python warnings and the libraries' own remarks and bars are left out; what matters is said by the command."""
    logging.captureWarnings(True)
    for library in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        # Read where the library is still to be imported.
        os.environ.setdefault(library, "error")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


def ask(prompt: str) -> str | None:
    """A line that is typed in, without blanks around it; None for `exit` and at the end of input."""
    try:
        line = input(prompt).strip()
    except EOFError:
        print()
        return None
    return None if line == "exit" else line


def describe(section: Any, prefix: str = "") -> list[str]:
    """Lines `key: type = default` with the documentation of every key below a configuration section."""
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
        lines.append(f"      {'Says which of these it is.' if is_discriminator else ' '.join(documentation.get(field.name, '').split())}")
        for kind in nested:
            lines += describe(kind, key + ".")
        for member in _list_members(hint):
            lines.append(f"    {key}.N, {member.__doc__}")
            lines += ["  " + line for line in describe(member, key + ".N.")]
    return lines


def _list_members(hint: Any) -> list[Any]:
    """The dataclasses that may stand in a tuple[...] field."""
    if get_origin(hint) is not tuple:
        return []
    member = get_args(hint)[0]
    while get_origin(member) is typing.Annotated:
        member = get_args(member)[0]
    return [kind for kind in (member, *get_args(member)) if dataclasses.is_dataclass(kind)]


def _as_yaml(value: Any) -> str:
    """A default as one would write it in YAML."""
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
