"""docs/training.md says what the code does, and the Chinese page says the same."""

import re
import signal
from typing import get_args

import pytest

from tests.pipeline import ROOT
from training.config import TrackerName
from training.interruption.resume_command import resume_command
from training.monitoring.console import hours, status_line
from training.monitoring.trackers import COLUMNS, PROJECT, TABLE

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/training.md", "docs/zh/training.md")}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```text\n(.*?)^```", PAGES[page], flags=re.M | re.S)


def test_both_pages_show_the_same_commands_lines_and_trackers() -> None:
    assert blocks("docs/training.md") == blocks("docs/zh/training.md")
    named = [re.findall(r"^\| `(\w+)`|`([A-Z][A-Z_]+)[=`]", text, flags=re.M) for text in PAGES.values()]
    assert sorted(named[0]) == sorted(named[1])


@pytest.mark.parametrize("page", PAGES)
def test_every_tracker_has_a_row_and_its_extra(page: str) -> None:
    assert re.findall(r"^\| `(\w+)`", PAGES[page], flags=re.M) == list(get_args(TrackerName))
    extras = re.findall(r"tessera-vlm\[(\w+)\]", PAGES[page])
    assert extras == [name for name in get_args(TrackerName) if name != "tensorboard"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[\"{extra}>=", project, flags=re.M) for extra in extras)
    assert all(f"`{name}`" in PAGES[page] for name in (TABLE, PROJECT))


def test_the_table_of_predictions_has_the_columns_that_the_page_names() -> None:
    assert re.search(r"table `validation/predictions` with ([\w, ]+) at", PAGES["docs/training.md"]) is not None
    assert " and ".join([", ".join(COLUMNS[:-1]), COLUMNS[-1]]) in PAGES["docs/training.md"]


def test_the_status_line_is_one_of_the_codes() -> None:
    row = {
        "step": 220, "stage": "tune", "loss": 0.6318, "learning_rate/connector": 1.21e-3, "learning_rate/lora": 1.21e-3, "grad_norm": 0.803,
        "supervised_tokens_per_second": 1013, "samples_per_second": 212.5, "peak_memory_gib": 1.02, "data_wait": 0.01,
    }  # fmt: skip
    assert blocks("docs/training.md")[2].strip() == status_line(row, 600, f"{hours(108)} gone, {hours(187)} left")


def test_the_last_line_of_a_stopped_run_is_one_of_the_codes() -> None:
    shown = blocks("docs/training.md")[0].strip()
    assert shown.startswith(f"{signal.SIGTERM.name} after step 431: checkpoints/mine/checkpoint-431 is written; go on with: ")
    assert shown.endswith(resume_command(["--config", "mine.yaml"], ["accelerate", "launch", "train.py"]))
