"""The command that continues an interrupted run, as it was started."""

import psutil
import pytest

from training.interruption.resume_command import launch_command, resume_command


class Parent:
    """A parent process with a command line."""

    def __init__(self, *words: str, **variables: str):
        self._words, self._variables = list(words), variables

    def cmdline(self) -> list[str]:
        return self._words

    def environ(self) -> dict[str, str]:
        return self._variables


class ForeignParent(Parent):
    def environ(self) -> dict[str, str]:
        raise psutil.AccessDenied(1)


@pytest.mark.parametrize(
    ("parent", "command"),
    [
        (Parent("-bash"), "python train.py"),
        (Parent("bash", "-c", "python train.py --config mine.yaml"), "python train.py"),
        (Parent("time", "python", "train.py"), "python train.py"),
        (Parent("/v/bin/python3.11", "/v/bin/accelerate", "launch", "train.py", "a.b=1"), "accelerate launch train.py"),
        (
            Parent(
                "/v/bin/python", "/v/bin/accelerate", "launch", "--config_file", "a b.yaml", "train.py", ACCELERATE_USE_CPU="true", X="1"
            ),
            "ACCELERATE_USE_CPU=true accelerate launch --config_file 'a b.yaml' train.py",
        ),
        (Parent("/v/bin/python", "-m", "accelerate.commands.launch", "train.py"), "python -m accelerate.commands.launch train.py"),
        (Parent("/v/bin/python", "/v/bin/torchrun", "--nproc-per-node", "2", "train.py"), "torchrun --nproc-per-node 2 train.py"),
        (ForeignParent("/v/bin/python", "/v/bin/accelerate", "launch", "train.py"), "python train.py"),
    ],
)
def test_the_launcher_is_part_of_the_command_if_one_was_used(parent: Parent, command: str) -> None:
    assert " ".join(launch_command("train.py", parent)) == command  # type: ignore[arg-type]


def test_the_users_own_arguments_are_kept() -> None:
    words = ["--config", "mine.yaml", "train.stages=[{name: a}]"]
    assert resume_command(words, ["python", "train.py"]) == ("python train.py --config mine.yaml 'train.stages=[{name: a}]' --resume auto")
