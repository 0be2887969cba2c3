"""CPU cores that this process may use: those of its affinity mask, within the CPU limit of its container."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

PROC = Path("/proc/self")
"""Where Linux describes the control groups and mounts of this process."""


def available_cores(proc: Path = PROC) -> int:
    """Number of cores that this process may use, at least 1.

    The machine may have more: a job scheduler or `taskset` restricts the affinity mask, and a container limits the CPU time. A limit
    of one and a half cores counts as two.

    Args:
        proc: the process's folder in /proc; without one, as on other systems than Linux, there is no container limit.
    """
    return max(1, min([_cores_in_affinity_mask(), *(math.ceil(limit) for limit in _container_limits(proc))]))


def limit_threads(proc: Path = PROC) -> None:
    """Let torch and the BLAS libraries start no more threads than there are available cores.

    Their own default knows the affinity mask but no container limit, and `accelerate launch` sets OMP_NUM_THREADS to the cores of the
    machine for a CPU run: 64 threads would share a container's 2 cores. A smaller OMP_NUM_THREADS is kept.
    """
    cores = available_cores(proc)
    requested = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    threads = int(requested) if requested.isdigit() else _cores_in_affinity_mask()
    if threads > cores:
        # Takes effect in libraries that are loaded later, and in child processes.
        os.environ["OMP_NUM_THREADS"] = str(min(cores, psutil.cpu_count(logical=False) or cores))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def _cores_in_affinity_mask() -> int:
    # sched_getaffinity does not exist on macOS and Windows.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _container_limits(proc: Path) -> Iterator[float]:
    """CPU limits of the process's control groups and of all groups above them, in cores (control groups of version 1 and 2)."""
    groups = dict(_groups(proc))
    for controllers, root, mount in _mounts(proc):
        for name in controllers & groups.keys():
            # Inside a container, the path in /proc may begin above the root of the mount; then the mount itself is the group.
            inside = groups[name].relative_to(root) if groups[name].is_relative_to(root) else Path()
            for group in (inside, *inside.parents):
                yield from _limit(mount / group)


def _groups(proc: Path) -> Iterator[tuple[str, Path]]:
    """Control groups of the process: controller -> path. Version 2 has one group for all controllers, here under the name ""."""
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, Path(path)


def _mounts(proc: Path) -> Iterator[tuple[set[str], Path, Path]]:
    """Mounted hierarchies that may limit the CPU: names of controllers, the group at the root of the mount, the mount point."""
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = (Path(field) for field in before.split(" ")[3:5])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            yield {""}, root, mount
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield {"cpu"}, root, mount


def _limit(folder: Path) -> Iterator[float]:
    """The limit of one control group in cores, if it has one: microseconds of CPU time per period of so many microseconds."""
    # Version 2 has both numbers in one file, "max" meaning no limit; version 1 has -1.
    stated = _lines(folder / "cpu.max") or [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    numbers = " ".join(stated).split()
    if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
        yield int(numbers[0]) / int(numbers[1])


def _lines(file: Path) -> list[str]:
    """Lines of a file of the kernel; none where it does not exist or may not be read, which means that it states no limit to us."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
