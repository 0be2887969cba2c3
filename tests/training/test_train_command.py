"""train.py as a command: in processes of its own, killed and continued, and in two processes."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import cli
import config as configuration
import train as train_command
from tests.training.feature_cache.test_feature_extraction import images_in, shards
from tests.training.test_run import losses, weights
from training.run import train

ROOT = Path(__file__).parent.parent.parent
Workplace = Callable[..., Path]
Overrides = tuple[str, ...]
LONG_DIVISOR = [
    {"name": "align", "train": ["connector"], "max_steps": 1},
    {"name": "tune", "train": ["connector", "lora"], "epochs": 2},
]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def two_processes(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """accelerate starts two processes on a CPU only in this way."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    program = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", port, str(ROOT / "train.py")]
    return subprocess.run([*program, *map(str, arguments)], env=environment(ACCELERATE_USE_CPU="true"), capture_output=True, text=True)


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(workspace: Workplace) -> None:
    # Dropout on, several epochs, two stages, accumulation: everything that depends on where a run stands.
    lora = {"r": 4, "alpha": 8, "dropout": 0.3}
    path = workspace(
        {"lora": lora}, stages=LONG_DIVISOR, per_device_train_batch_size=1, gradient_accumulation_steps=2, save_steps=1, eval_steps=3
    )
    whole = train(configuration.load(path))
    whole.parent.rename("uninterrupted")
    expected = weights(Path("uninterrupted") / whole.name)

    # Early enough to leave something to do, late enough for a checkpoint in the midst of a stage with dropout.
    victim = random.SystemRandom().randint(4, 8)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--config", str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {victim}/9"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"was to be killed behind step {victim}"
    assert not whole.exists()

    found = weights(train(configuration.load(path), "auto"))
    assert all((found[key] == value).all() for key, value in expected.items()), f"killed behind step {victim}"


@pytest.mark.parametrize(
    ("both", "whole", "shared"),
    [
        # Batches of one: the sample without a picture stands alone in its process.
        ((), ("train.per_device_train_batch_size=8",), ("train.per_device_train_batch_size=1",)),
        (("train.batching=packed", "train.cache_vision_features=true"), ("train.packing_length=1024",), ("train.packing_length=160",)),
    ],
    ids=["padded", "packed with kept features"],
)
def test_two_processes_give_the_loss_of_one(workspace: Workplace, both: Overrides, whole: Overrides, shared: Overrides) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    path = workspace(stages=[stage], save_steps=1)
    alone = train(configuration.load(path, [*both, *whole]))
    alone.parent.rename("alone")
    shutil.rmtree("data/toy/cache", ignore_errors=True)
    together = two_processes("--config", path, *both, *shared, "train.gradient_accumulation_steps=4", "train.num_processes=2")
    assert together.returncode == 0, together.stderr
    images = [image for shard in shards() for image in images_in(shard)]
    assert len(images) == len(set(images)) == (7 if both else 0), "the processes computed features twice, or not all"
    assert together.stdout.count("step 2/2 tune | loss") == 1
    expected = Path("alone") / alone.name
    assert losses(alone) == pytest.approx(losses(expected), abs=1e-5)
    assert losses(alone, "grad_norm") == pytest.approx(losses(expected, "grad_norm"), rel=1e-4)
    assert losses(alone, "eval_loss") == pytest.approx(losses(expected, "eval_loss"), abs=1e-4)


def command(*arguments: str | Path) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.run(train_command.main, train_command.parser, list(map(str, arguments)))
    return int(str(ended.value.code))


def test_the_command_ends_with_the_checkpoint_and_what_comes_next(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace()
    assert command("--config", path, "train.stages.0.max_steps=1") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "checkpoint: checkpoints/toy/checkpoint-1",
        f"next: python tools/eval_rerank.py --config {path} train.stages.0.max_steps=1 --checkpoints checkpoints/toy/checkpoint-1",
    ]


def test_wrong_settings_end_in_one_line_with_status_2(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--config", workspace(), "model.language=no/such/folder") == 2
    assert capsys.readouterr().err.startswith("error: model.language: no/such/folder does not exist")


@pytest.mark.parametrize(
    ("too_much", "doing"),
    [
        ("model.lora.r=1000000000000", "loading the model"),
        ("train.packing_length=100000000000000", "training"),
    ],
)
def test_running_out_of_memory_ends_in_one_line_that_names_the_settings_to_change(
    workspace: Workplace, capsys: pytest.CaptureFixture[str], too_much: str, doing: str
) -> None:
    # More than any machine can address, so what fails here is torch's own allocator.
    assert command("--config", workspace(batching="packed", packing_length=512), too_much) == 1
    # In front of it stands the progress of what was measured before.
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {doing}: out of memory on this machine (")
    assert not any("error" in line.lower() or "Traceback" in line for line in before)
    named = set(re.findall(r"\b(train\.\w+|model\.[\w.]+)(?==| |,)", said.partition("); ")[2]))
    assert {"train.packing_length", "train.per_device_train_batch_size", "train.gradient_checkpointing", "model.quantization"} <= named


def test_wrong_settings_are_said_by_the_main_process_alone(
    workspace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert command("--config", workspace(), "train.num_processes=3") == 2
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_what_accelerate_reads(path: Path) -> None:
    launch = load_config_from_file(str(path))
    kinds = {
        "cpu": "NO", "cpus": "MULTI_GPU", "gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP",
        "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED",
    }  # fmt: skip
    assert launch.distributed_type == kinds[path.stem]
    assert launch.use_cpu == (path.stem in ("cpu", "cpus"))
    if path.stem == "fsdp2":
        assert launch.fsdp_config["fsdp_version"] == 2
    if path.stem.startswith("deepspeed"):
        assert launch.deepspeed_config["zero_stage"] == int(path.stem[-1])
