"""The command that continues an interrupted run, in the form in which it was started."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import psutil

LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")
ENVIRONMENT = ("ACCELERATE_USE_CPU",)
"""Variables that change what a launcher starts, shown where they were set for it."""


def resume_command(arguments: Sequence[str], launch: Sequence[str]) -> str:
    """The command line of train.py with --resume auto. arguments: the others; launch: what `launch_command` returned."""
    return f"{' '.join(launch)} {shlex.join([*arguments, '--resume', 'auto'])}"


def launch_command(script: str, process: psutil.Process) -> list[str]:
    """The words before the script's arguments: those of the launcher that started it, else python and the script.

    To be called at the start, while the launcher lives. script: as it was named, sys.argv[0]; process: the parent process.
    """
    try:
        words, variables = process.cmdline(), process.environ()
    except psutil.Error:  # a process of another user, so not the launcher of this one
        words, variables = [], {}
    if script not in words or not any(launcher in word for word in words for launcher in LAUNCHERS):
        return ["python", shlex.quote(script)]
    program = words[: words.index(script)]
    if Path(program[0]).name.startswith("python"):
        # An installed command such as accelerate runs as `python .../bin/accelerate`.
        program = ["python", *program[1:]] if program[1].startswith("-") else [Path(program[1]).name, *program[2:]]
    prefix = [f"{name}={shlex.quote(variables[name])}" for name in ENVIRONMENT if name in variables]
    return [*prefix, *map(shlex.quote, [*program, script])]
