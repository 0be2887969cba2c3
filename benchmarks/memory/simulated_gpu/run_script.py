"""What runs in a process that has an imitated card: a script with its arguments, as `python SCRIPT ...` would run it."""

import os
import runpy
import sys
import traceback
from pathlib import Path

import torch


def disable_gpu_only_code() -> None:
    """cuDNN, which asks a real card for a plan of its convolutions, and a distribution whose kernel is compiled when it is first used.

    Convolutions (one a picture, for its patches) take another way; weights are as meaningless as everything else.
    """
    torch.backends.cudnn.enabled = False
    torch.nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor


def run(arguments: list[str]) -> int:
    """The exit status of a script. arguments: its path and what it is given."""
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_error:
        if isinstance(exit_error.code, str):
            print(exit_error.code, file=sys.stderr)
        return exit_error.code if isinstance(exit_error.code, int) else int(exit_error.code is not None)
    except Exception:  # noqa: BLE001 - the interpreter's own report of it would come behind our end
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    disable_gpu_only_code()
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of torch's own end, which now and then waits for or trips over a card that is not there.
    os._exit(status)
