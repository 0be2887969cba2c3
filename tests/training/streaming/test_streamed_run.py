"""A run that streams its data: it trains, reports, goes on bit for bit, and says in one sentence what it cannot do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import config as configuration
from errors import TesseraError, UsageError
from tests.object_storage import Bucket
from training.run import TrainingRun

STAGES = [{"name": "tune", "train": ["connector", "lora"], "max_steps": 9}]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


@pytest.mark.parametrize("settings", [{}, {"dataloader_num_workers": 2}, {"batching": "packed", "packing_length": 256}], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(streamed: Callable[..., Path], settings: dict[str, object]) -> None:
    config = configuration.load(streamed(stages=STAGES, save_steps=1, save_total_limit=20, **settings))
    last = TrainingRun(config).train()
    expected = weights(last)
    losses = [row["loss"] for row in json.loads((last / "trainer" / "run_state.json").read_text())["history"] if "loss" in row]
    assert len(losses) == 9
    # An epoch of 24 samples in batches of 4, or rows of three or four samples, ends in between.
    for step in (8, 4):
        for later in range(step + 1, 10):
            shutil.rmtree(last.parent / f"checkpoint-{later}")
        assert TrainingRun(config, "auto").train() == last
        found = weights(last)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_report_stands_next_to_the_checkpoints_and_is_printed_once(
    streamed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = streamed(stages=STAGES, save_steps=4)
    records = json.loads(Path("raw/talks.json").read_text())
    Path("raw/talks.json").write_text(json.dumps([*records, {"image": "0.png"}, {**records[0], "image": "none.png"}]))
    TrainingRun(configuration.load(path)).train()
    printed = capsys.readouterr().out
    assert printed.count("data: llava: dropped, missing file (raw/talks.json: record 25: ") == 0
    assert printed.count(f"data: llava: dropped, missing file ({Path('raw/talks.json').absolute()}: record 25: ") == 1
    assert printed.count("data: every source was read to its end") == 1
    assert re.search(r"llava +26 +24 +2 +24\n", printed)
    report = json.loads(Path("checkpoints/toy/stream_report.json").read_text())
    assert report["sources"][0]["dropped"] == {"missing field": 1, "missing file": 1}
    assert report["by_split"] == {"train": 24, "validation": 0, "test": 0}


def test_weights_stand_in_the_log_and_the_report(streamed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = {"format": "llava", "annotations": "raw/talks.json"}
    weighted = [{**source, "name": "often", "weight": 3}, {**source, "name": "rare", "weight": 1}]
    config = configuration.load(streamed(stages=STAGES), ["data.sources=" + json.dumps(weighted)])
    TrainingRun(config).train()
    assert "mix: often 75.0 %, rare 25.0 % of the samples read so far" in capsys.readouterr().out
    shares = [source["training_share"] for source in json.loads(Path("checkpoints/toy/stream_report.json").read_text())["sources"]]
    assert shares == [0.75, 0.25]


def test_an_image_that_vanishes_while_its_sample_waits_is_named(streamed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration.load(streamed(stages=STAGES, max_unreadable_images=0.5))
    monkeypatch.setattr("dataset.loading.image_io.RETRY_SECONDS", ())
    run = TrainingRun(config)
    prepare = run._prepare

    def prepare_and_remove() -> object:
        setup = prepare()
        # The samples were checked; what checks them again does not see that the file is gone.
        monkeypatch.setattr("dataset.build.image_validation.read_image_file", lambda _path, _limit: Path("raw/0.png").read_bytes())
        Path("raw/5.png").unlink()
        return setup

    monkeypatch.setattr(run, "_prepare", prepare_and_remove)
    run.train()
    state = json.loads(Path("checkpoints/toy/checkpoint-9/trainer/run_state.json").read_text())
    unreadable = [row for row in state["history"] if "unreadable_image" in row]
    assert [(Path(row["unreadable_image"]).name, row["sample"]) for row in unreadable] == [("5.png", "llava/5")]


def test_a_source_that_cannot_be_read_on_ends_the_run_with_one_sentence(streamed: Callable[..., Path]) -> None:
    path = streamed(stages=STAGES, dataloader_num_workers=1)
    text = Path("raw/talks.json").read_text()
    Path("raw/talks.json").write_text(text[: int(len(text) * 0.8)])
    with pytest.raises(TesseraError, match=r"talks\.json: not valid JSON at line 1") as failure:
        TrainingRun(configuration.load(path)).train()
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stages.0.max_steps=null"], r"train\.stages\.0\.max_steps: must be given with data\.streaming"),
        (
            ["train.max_questions_per_conversation=4"],
            "train.max_questions_per_conversation: 4 needs all questions about an image.*set it to 1",
        ),
        (["train.cache_vision_features=true"], "train.cache_vision_features: cannot be had with data.streaming"),
        (["train.batching=packed", "train.packing_length=128"], "train.packing_length: 128 is less than model.max_length=256"),
        (["data.pack=true"], "streaming: true does not know all samples beforehand, so pack: true cannot be had"),
        (["data.mix_temperature=2"], "so mix_temperature cannot be had; weights of sources can"),
    ],
    ids=str,
)
def test_what_needs_all_samples_is_refused(streamed: Callable[..., Path], overrides: list[str], message: str) -> None:
    path = streamed(stages=STAGES)
    with pytest.raises(UsageError, match=message):
        TrainingRun(configuration.load(path, overrides)).train()


def test_other_files_are_not_resumed_from(streamed: Callable[..., Path]) -> None:
    config = configuration.load(streamed(stages=STAGES, save_steps=4))
    shutil.rmtree(TrainingRun(config).train())
    records = json.loads(Path("raw/talks.json").read_text())
    Path("raw/talks.json").write_text(json.dumps(records[1:]))
    with pytest.raises(UsageError, match=r"trained with other settings: data \(samples\.parquet\)"):
        TrainingRun(config, "auto").train()


def test_a_bucket_is_streamed_in_forked_loader_processes(streamed: Callable[..., Path], bucket: Bucket) -> None:
    path = streamed(stages=STAGES, dataloader_num_workers=2)
    expected = weights(TrainingRun(configuration.load(path)).train())
    bucket.upload(Path("raw"))
    source = {"format": "llava", "annotations": f"{bucket.path}/talks.json", "images": str(bucket.path)}
    found = weights(TrainingRun(configuration.load(path, ["name=remote", "data.sources=" + json.dumps([source])])).train())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
