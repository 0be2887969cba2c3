"""Cores are counted within the affinity mask and the container's CPU limit, in one place."""

import ast
import os
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

import cli
import cpu_cores
from cpu_cores import available_cores, limit_threads
from training.config import TrainConfig
from training.run_setup import num_loader_workers

V1_MOUNT = "30 23 0:28 {root} {mount} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2_MOUNT = "30 23 0:28 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw"
OTHER_MOUNTS = "22 1 8:1 / / rw - ext4 /dev/root rw\n31 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def proc_folder(tmp_path: Path, mount_line: str, groups: str, limits: dict[str, str], root: str = "/") -> Path:
    """A stand-in for /proc/self: the mount of a control group hierarchy, the process's groups, and the files below the mount."""
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    (proc / "mountinfo").write_text(OTHER_MOUNTS + mount_line.format(root=root, mount=mount) + "\n")
    (proc / "cgroup").write_text(groups)
    for name, content in limits.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(content + "\n")
    return proc


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"pod/job/cpu.max": "200000 100000"}, 2),
        ({"pod/job/cpu.max": "150000 100000"}, 2),
        ({"pod/job/cpu.max": "5000 100000"}, 1),
        ({"pod/job/cpu.max": "max 100000"}, 64),
        ({"pod/job/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}, 4),
        ({"pod/job/cpu.max": "800000 100000", "cpu.max": "300000 100000"}, 3),
        ({"pod/job/cpu.max": "9900000 100000"}, 64),
        ({"pod/other/cpu.max": "100000 100000"}, 64),
        ({}, 64),
    ],
)
def test_the_limit_of_a_version_2_group_or_of_one_above_it_counts(tmp_path: Path, limits: dict[str, str], cores: int) -> None:
    assert available_cores(proc_folder(tmp_path, V2_MOUNT, "0::/pod/job\n", limits)) == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000", 2), ("-1", 64)],
)
def test_the_limit_of_a_version_1_group_counts(tmp_path: Path, quota: str, cores: int) -> None:
    limits = {"pod/cpu.cfs_quota_us": quota, "pod/cpu.cfs_period_us": "100000"}
    groups = "5:memory:/elsewhere\n4:cpu,cpuacct:/pod\n0::/\n"
    assert available_cores(proc_folder(tmp_path, V1_MOUNT, groups, limits)) == cores


def test_inside_a_container_the_mount_is_the_group_itself(tmp_path: Path) -> None:
    limits = {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}
    assert available_cores(proc_folder(tmp_path, V1_MOUNT, "4:cpu,cpuacct:/docker/a1\n", limits, root="/docker/a1")) == 3


def test_a_group_outside_the_root_of_the_mount_is_taken_for_the_mount(tmp_path: Path) -> None:
    assert available_cores(proc_folder(tmp_path, V2_MOUNT, "0::/b\n", {"cpu.max": "300000 100000"}, root="/a")) == 3


def test_the_affinity_mask_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9})
    assert available_cores(proc_folder(tmp_path, V2_MOUNT, "0::/\n", {"cpu.max": "800000 100000"})) == 3


def test_without_proc_and_affinity_mask_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores(tmp_path / "none") == os.cpu_count()


@pytest.mark.parametrize(("before", "after"), [(None, "2"), ("64", "2"), ("64,1", "2"), ("not a number", "2"), ("2", "2"), ("1", "1")])
def test_threads_are_limited_to_the_cores_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(psutil, "cpu_count", lambda **_: 32)
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    limit_threads(proc_folder(tmp_path, V2_MOUNT, "0::/\n", {"cpu.max": "200000 100000"}))
    assert (os.environ["OMP_NUM_THREADS"], set_to) == (after, [2])


def test_without_a_container_limit_the_default_of_the_libraries_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the number of physical cores, which may be half of those in the affinity mask."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads(proc_folder(tmp_path, V2_MOUNT, "0::/\n", {"cpu.max": "max 100000"}))
    assert "OMP_NUM_THREADS" not in os.environ


def test_every_command_limits_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(cli, "limit_threads", lambda: called.append("limited"))
    with pytest.raises(SystemExit):
        cli.run(lambda _: called.append("main"), cli.Parser("", takes_config=False), [])
    assert called == ["limited", "main"]


def test_loading_workers_are_a_ranks_share_of_the_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(cpu_cores, "_container_limits", lambda _: iter([]))
    assert num_loader_workers(TrainConfig()) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert num_loader_workers(TrainConfig()) == 2
    assert num_loader_workers(TrainConfig(dataloader_num_workers=5)) == 5


def test_no_other_module_counts_cores() -> None:
    files = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    counting = {
        file
        for file in files
        if not file.startswith("tests/")
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("cpu_count", "sched_getaffinity", "process_cpu_count")
    }
    # The report of a benchmark states physical cores.
    assert counting == {"cpu_cores.py", "benchmarks/benchmark_report.py"}
