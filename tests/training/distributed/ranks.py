"""Run a script in several processes on the CPU, as a launcher would."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_ranks(script: Path, *arguments: str, world_size: int = 2, env: dict[str, str] | None = None, timeout: float = 240) -> list[str]:
    """Output of each rank; all of them are expected to succeed.

    A rank that waits for another one for longer than `timeout` seconds is stopped, and the test fails with all outputs.
    """
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    shared |= {"LOCAL_WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **(env or {})}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            outputs.append(process.communicate()[0] + "\n(waited for another rank)")
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
    return outputs
