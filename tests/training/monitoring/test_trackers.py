"""What a run reports to each tracker, with the tracker's own library where it is installed and works offline.

`make test-all` installs those that are not among the development requirements.
"""

import importlib.util
import json
import signal
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_run import run, state

Workspace = Callable[..., Path]
OFFLINE = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "swanlab": {"SWANLAB_MODE": "offline"},
    "mlflow": {"MLFLOW_TRACKING_URI": "file:./mlruns", "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
    "trackio": {"TRACKIO_DIR": "trackio"},
}
KEYS = {"WANDB_API_KEY": "wandb-secret-" + "0" * 40, "SWANLAB_API_KEY": "swanlab-secret", "MLFLOW_TRACKING_TOKEN": "mlflow-secret"}
STAGES = [
    {"name": "align", "train": ["connector"], "max_steps": 1},
    {"name": "tune", "train": ["connector", "lora"], "epochs": 2, "max_steps": 2},
]


def reported(name: str) -> tuple[dict[str, list[int]], list[str]]:
    """Steps at which each scalar was reported, and the texts of the sample predictions, as the tracker's files have them."""
    return {"wandb": wandb_files, "swanlab": swanlab_files, "mlflow": mlflow_files, "trackio": trackio_files}[name]()


def wandb_files() -> tuple[dict[str, list[int]], list[str]]:
    steps: dict[str, list[int]] = {}
    for path in sorted(Path("results/toy/wandb").glob("offline-run-*/*.wandb")):
        for items in wandb_history(path.read_bytes()):
            for key in items.keys() - {"train/global_step", "_step", "_timestamp", "_runtime"}:
                steps.setdefault(key, []).append(int(items["train/global_step"]))
    tables = Path("results/toy/wandb").glob("offline-run-*/files/media/table/validation/*.json")
    return steps, [text for table in tables for row in json.loads(table.read_text())["data"] for text in row[1:]]


def wandb_history(content: bytes) -> Iterator[dict[str, Any]]:
    """Logged values of a .wandb file: after 7 bytes, records in LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    position, data, block = 7, b"", 32 * 1024
    while position < len(content):
        if block - position % block < 7:
            position += block - position % block  # too short for the header of a record
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            data = b""
            if record.history.item:
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def mlflow_files() -> tuple[dict[str, list[int]], list[str]]:
    (folder,) = [path.parent for path in Path("mlruns").glob("*/*/meta.yaml")]
    metrics = [path for path in (folder / "metrics").rglob("*") if path.is_file()]
    steps = {
        str(path.relative_to(folder / "metrics")): [int(line.split()[2]) for line in path.read_text().splitlines()] for path in metrics
    }
    assert len(list((folder / "artifacts" / "images").glob("*.png"))) >= 2
    table = json.loads((folder / "artifacts" / "validation" / "predictions.json").read_text())
    assert table["columns"][0] == "step"
    return {f"train/{key}": values for key, values in steps.items()}, [text for row in table["data"] for text in row[1:]]


def trackio_files() -> tuple[dict[str, list[int]], list[str]]:
    (database,) = Path("trackio").glob("tessera*.db")
    rows = [json.loads(metrics) for (metrics,) in sqlite3.connect(database).execute("SELECT metrics FROM metrics ORDER BY id")]
    steps: dict[str, list[int]] = {}
    texts: list[str] = []
    for row in rows:
        for key, value in row.items():
            steps.setdefault(key, []).append(row["train/global_step"])
            if key == "validation/predictions":
                texts += [cell for line in value["_value"] for cell in line.values() if isinstance(cell, str)]
    return steps, texts


def swanlab_files() -> tuple[dict[str, list[int]], list[str]]:
    # Its records are binary; names, captions and the run's id are readable in them.
    runs = sorted(Path("results/toy/swanlab").glob("run-*/*.swanlab"))
    assert len({path.stem for path in runs}) == 1
    assert list(Path("results/toy/swanlab").glob("run-*/media/image/*.png"))
    content = b"".join(path.read_bytes() for path in runs).decode("utf-8", errors="replace")
    steps = {"train/loss": [1, 2, 3, 4], "train/learning_rate/lora": [2, 3, 4]}
    return {key: values for key, values in steps.items() if key in content}, [content]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_scalars_and_predictions_arrive_a_resumed_run_goes_on_in_the_same_place_and_keys_stand_in_no_file(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; make test-all installs it")
    for variable, value in {**OFFLINE[name], **KEYS}.items():
        monkeypatch.setenv(variable, value)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    path = workspace(stages=STAGES, report_to=name, num_logged_predictions=2, eval_steps=1)
    first = run(path)
    last = run(path, "train.stages.1.max_steps=3", resume="auto")

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert state(first).trackers.keys() == {name}
    assert state(first).trackers == state(last).trackers
    steps, texts = reported(name)
    assert steps["train/loss"] == [1, 2, 3, 4]
    assert steps["train/learning_rate/lora"] == [2, 3, 4]
    shown = "\n".join(texts)
    assert "What color is the circle?" in shown and "red" in shown
    assert not Path("results/toy/tensorboard").exists()
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert [path for path in files for key in KEYS.values() if key.encode() in path.read_bytes()] == []
