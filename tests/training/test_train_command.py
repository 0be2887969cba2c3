"""train.py as a command: in a subprocess, killed and resumed, and on two ranks."""

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
import torch
from accelerate.commands.config.config_args import load_config_from_file

import cli
import config as configuration
import train as train_command
from tests.training.feature_cache.test_feature_extraction import images_in, shards
from tests.training.test_run import losses, weights
from training.run import TrainingRun

ROOT = Path(__file__).parent.parent.parent
Workspace = Callable[..., Path]
Overrides = tuple[str, ...]
STAGES = [
    {"name": "align", "train": ["connector"], "max_steps": 1},
    {"name": "tune", "train": ["connector", "lora"], "epochs": 2},
]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def launcher() -> list[str]:
    """The command that starts train.py on two CPU ranks; accelerate starts several CPU processes only with these options."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", port, str(ROOT / "train.py")]


def run_on_two_ranks(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = [*launcher(), *map(str, arguments)]
    return subprocess.run(program, env=environment(ACCELERATE_USE_CPU="true"), capture_output=True, text=True)


def check_killed_run_resumes(path: Path, last_step: int, steps: int, read: Callable[[Path], dict[str, torch.Tensor]]) -> None:
    """Kill train.py after a step: the resumed run ends with the weights of an uninterrupted one, bit for bit. read: weights of a folder."""
    uninterrupted = TrainingRun(configuration.load(path)).train()
    uninterrupted.parent.rename("uninterrupted")
    expected = read(Path("uninterrupted") / uninterrupted.name)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--config", str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {last_step}/{steps}"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"not killed after step {last_step}"
    assert not uninterrupted.exists()
    resumed = read(TrainingRun(configuration.load(path), "auto").train())
    assert resumed.keys() == expected.keys()
    assert all((resumed[key] == value).all() for key, value in expected.items()), f"killed after step {last_step}"


def test_a_killed_and_resumed_run_ends_with_the_same_weights_bit_for_bit(workspace: Workspace) -> None:
    # Dropout, several epochs, two stages, gradient accumulation: everything that depends on the state of a run.
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3}
    path = workspace(
        {"lora": lora}, stages=STAGES, per_device_train_batch_size=1, gradient_accumulation_steps=2, save_steps=1, eval_steps=3
    )
    # Killed before the last step, and after a checkpoint within the stage with dropout.
    check_killed_run_resumes(path, random.SystemRandom().randint(4, 8), 9, weights)


VISION_TOO = "train.stages.0.train=[vision, connector, lora]"


@pytest.mark.parametrize(
    ("both", "one_rank", "two_ranks"),
    [
        # Batches of one: the sample without an image is the only one of its micro-batch.
        ((), ("train.per_device_train_batch_size=8",), ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4")),
        pytest.param(
            (),
            ("train.per_device_train_batch_size=8", VISION_TOO),
            ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4", VISION_TOO),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("train.batching=packed", "train.cache_vision_features=true"),
            ("train.packing_length=1024",),
            ("train.packing_length=160", "train.gradient_accumulation_steps=2"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["padded", "trained vision encoder", "packed with cached features"],
)
def test_two_ranks_give_the_loss_of_one(workspace: Workspace, both: Overrides, one_rank: Overrides, two_ranks: Overrides) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    path = workspace(stages=[stage], save_steps=1)
    checkpoint = TrainingRun(configuration.load(path, [*both, *one_rank])).train()
    checkpoint.parent.rename("one_rank")
    shutil.rmtree("data/toy/cache", ignore_errors=True)
    result = run_on_two_ranks("--config", path, *both, *two_ranks, "train.num_processes=2")
    assert result.returncode == 0, result.stderr
    images = [image for shard in shards() for image in images_in(shard)]
    assert len(images) == len(set(images)) == (7 if both else 0), "features were computed twice or are missing"
    assert result.stdout.count("step 2/2 tune | loss") == 1
    expected = Path("one_rank") / checkpoint.name
    assert losses(checkpoint) == pytest.approx(losses(expected), abs=1e-5)
    assert losses(checkpoint, "grad_norm") == pytest.approx(losses(expected, "grad_norm"), rel=1e-4)
    assert losses(checkpoint, "eval_loss") == pytest.approx(losses(expected, "eval_loss"), abs=1e-4)


def command(*arguments: str | Path) -> int:
    """Run the command in this process and return its exit status."""
    with pytest.raises(SystemExit) as exit_info:
        cli.run(train_command.main, train_command.parser, list(map(str, arguments)))
    return int(str(exit_info.value.code))


def test_the_command_ends_with_the_checkpoint_and_the_next_command(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace()
    assert command("--config", path, "train.stages.0.max_steps=1") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "checkpoint: checkpoints/toy/checkpoint-1",
        f"next: python tools/eval_rerank.py --config {path} train.stages.0.max_steps=1 --checkpoints checkpoints/toy/checkpoint-1",
    ]


def test_invalid_settings_are_a_one_line_error_with_status_2(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--config", workspace(), "model.language=no/such/folder") == 2
    assert capsys.readouterr().err.startswith("error: model.language: no/such/folder does not exist")


@pytest.mark.parametrize(
    ("override", "activity"),
    [
        ("model.lora.r=1000000000000", "loading the model"),
        ("train.packing_length=100000000000000", "training"),
    ],
)
def test_an_out_of_memory_error_is_one_line_that_names_the_settings_to_change(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], override: str, activity: str
) -> None:
    # More than any machine can address, so torch's own allocator fails.
    assert command("--config", workspace(batching="packed", packing_length=512), override) == 1
    # The progress bars of measuring the samples come before the error.
    *progress, message = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {activity}: out of memory on this machine (")
    assert not any("error" in line.lower() or "Traceback" in line for line in progress)
    named = set(re.findall(r"\b(train\.\w+|model\.[\w.]+)(?==| |,)", message.partition("); ")[2]))
    assert {"train.packing_length", "train.per_device_train_batch_size", "train.gradient_checkpointing", "model.quantization"} <= named


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_loads_every_launch_file(path: Path) -> None:
    launch = load_config_from_file(str(path))
    kinds = {
        "cpu": "NO", "cpus": "MULTI_GPU", "gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP",
        "fsdp2_qlora": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED",
    }  # fmt: skip
    assert launch.distributed_type == kinds[path.stem]
    assert launch.use_cpu == (path.stem in ("cpu", "cpus"))
    if path.stem == "fsdp2":
        assert launch.fsdp_config["fsdp_version"] == 2
    if path.stem.startswith("deepspeed"):
        assert launch.deepspeed_config["zero_stage"] == int(path.stem[-1])
