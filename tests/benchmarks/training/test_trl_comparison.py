"""`tools/benchmark.py train --against trl` gives both sides the same weights, samples and adapters."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import config as configuration
from benchmarks.peers.peer_environment import peer_python
from benchmarks.training import trl_comparison
from dataset.loading.sample_store import SampleStore
from errors import TesseraError
from tests.training.conftest import workspace as workspace
from tests.training.conftest import write_data
from tools import benchmark

Workspace = Callable[..., Path]


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.run(benchmark.main, benchmark.arguments(), ["train", "--against", "trl", *map(str, arguments)])
    return int(str(exit_info.value.code))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip_qwen", "qwen_vl"])
def test_both_sides_are_run_in_turn(workspace: Workspace, parts: Path, capfd: pytest.CaptureFixture[str], family: str) -> None:
    path = workspace(None if family == "siglip_qwen" else {"family": family, "path": str(parts / "qwen3_vl")})
    write_data(Path("data/more"), training=32)
    settings = ("data.folder=data/more", "train.per_device_train_batch_size=1")
    assert command("--config", path, "--steps", "20", "--rounds", "1", "--out", "tables", *settings) == 0
    printed = capfd.readouterr().out
    assert re.search(r"^ours \(train\.py\)\s+[\d.]+", printed, re.MULTILINE)
    assert re.search(r"^SFTTrainer \(trl [\d.]+\)\s+[\d.]+.*\d\.\d\d \(", printed, re.MULTILINE)
    (ours, theirs) = json.loads(Path("tables/train_toy_against_trl.json").read_text(encoding="utf-8"))["runs"]
    assert ours["trained_parameters"] == theirs["trained_parameters"] > 0
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=0.5)
    assert not Path("checkpoints/toy_against_trl_ours").exists()


def test_both_sides_get_the_same_samples(workspace: Workspace, tmp_path: Path) -> None:
    config, folder = configuration.load(workspace()), tmp_path / "both"
    folder.mkdir()
    assert trl_comparison._write_samples(config.data_folder, folder, 5) == 5
    store = SampleStore(folder / "data")
    ours = list(store.samples(store.indices("train")))
    theirs: list[dict[str, Any]] = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(ours) == len(theirs) == 5
    for sample, line in zip(ours, theirs, strict=True):
        assert sample.messages[0].content == "<image>\n" + line["prompt"][0]["content"]
        assert line["completion"] == [{"role": "assistant", "content": sample.targets[0]}]
        assert line["images"] == [str(Path(store.image(sample.image_ids[0]).path).absolute())]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.lora=null",), "model.lora: both sides train adapters"),
        (("--steps", "19"), "--steps 19: expected at least 20"),
        (("--steps", "500"), "samples of one question about one image; 1,000 are needed"),
        (('model={family: blip2, path: "a/b"}',), "model.family: SFTTrainer needs a model with a chat template"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(trl_comparison, "peer_python", lambda _: Path("python"))
    assert command("--config", workspace(), "train.per_device_train_batch_size=2", *settings) == 2
    assert message in capsys.readouterr().err


def test_a_peer_that_cannot_be_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TesseraError, match=r"no-such-package-of-anyone==1\.0: cannot be installed by python\S* -m pip \("):
        peer_python("no-such-package-of-anyone==1.0")
    assert not any(Path("results/benchmark/peers").iterdir())
