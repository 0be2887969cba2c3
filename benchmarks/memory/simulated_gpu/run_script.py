"""Entry point of a process on a simulated GPU: runs a script with its arguments as `python SCRIPT ...` does."""

import os
import runpy
import sys
import traceback
from pathlib import Path

import torch


def disable_gpu_only_code() -> None:
    """Disable cuDNN, which asks the GPU for an execution plan, and truncated normal initialisation, which compiles its kernel at first use.

    Convolutions (the patch embedding) use another implementation; the values of the weights do not matter.
    """
    torch.backends.cudnn.enabled = False
    torch.nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor


def run(arguments: list[str]) -> int:
    """Run a script, given as its path and its arguments; returns its exit status."""
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_error:
        if isinstance(exit_error.code, str):
            print(exit_error.code, file=sys.stderr)
        return exit_error.code if isinstance(exit_error.code, int) else int(exit_error.code is not None)
    except Exception:  # noqa: BLE001 - os._exit below skips the interpreter's own traceback
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    disable_gpu_only_code()
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips torch's cleanup at exit, which sometimes hangs or crashes without a real GPU.
    os._exit(status)
