"""Reporting of the error that ends a command: one line on standard error, and the launcher's error file.

With several processes the error that comes first is printed, with its rank; what other ranks meet afterwards, such as a closed
connection, is not. torchrun and accelerate name a file for each process (TORCHELASTIC_ERROR_FILE), whose text their own summary shows.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def report_error(message: str, error: BaseException, show_traceback: bool) -> None:
    """Print an error that ends this process, unless another rank on this machine has printed one before.

    Args:
        message: One line.
        error: The exception; a launcher's summary gets its message, or its traceback if that is shown.
        show_traceback: Print the traceback before the line.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched:
        message = f"rank {os.environ.get('RANK', '0')}: {message}"
        _write_error_file(message, traceback.format_exc() if show_traceback else None)
    if launched and not _is_first_error():
        return
    if show_traceback:
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr, flush=True)


def _is_first_error() -> bool:
    """Whether no other rank of this launch on this machine has failed yet. True without torchrun's files, so that no error is lost."""
    error_file = os.environ.get(ERROR_FILE_VARIABLE)
    if not error_file:
        return True
    # <log folder>/attempt_<n>/<local rank>/error.json
    try:
        os.close(os.open(Path(error_file).parent.parent / "first_error", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _write_error_file(message: str, details: str | None) -> None:
    """Write the launcher's error file, in the form that torch.distributed.elastic reads."""
    error_file = os.environ.get(ERROR_FILE_VARIABLE)
    if error_file:
        extra = {"timestamp": str(int(time.time()))} | ({"py_callstack": details} if details else {})
        Path(error_file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
