"""Images that are removed or damaged after the merge: a run goes on with other samples, counts them, and ends when they are many."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import config as configuration
from dataset.loading import image_io
from dataset.loading.collators import UnreadableImage
from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.loading.image_io import ImageError
from dataset.loading.sample_store import SampleStore
from dataset.loading.samplers import SampleKey
from dataset.record_validation import DropReason
from errors import TesseraError
from process_group import ProcessGroup
from tests.training.test_run import losses, run, state, weights
from training import unreadable_images
from training.data_loading import TrainingData
from training.monitoring.metrics_history import History
from training.run_setup import setup_run
from training.unreadable_images import MAX_SUBSTITUTES, UnreadableImages, UnreadableLimit, substitutes

Workspace = Callable[..., Path]
STAGE = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
DATA = Path("data/toy")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between tries; no time passes."""
    waited: list[float] = []
    monkeypatch.setattr("dataset.loading.image_io.time.sleep", waited.append)
    return waited


def unreadable(checkpoint: Path) -> list[dict[str, Any]]:
    return [row for row in state(checkpoint).history if "unreadable_image" in row]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_an_image_that_was_removed_is_named_once_and_another_sample_takes_its_place(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], batching: str
) -> None:
    path = workspace(stages=[STAGE], batching=batching, packing_length=256)
    (DATA / "2.png").unlink()
    last = run(path)
    (row,) = unreadable(last)
    assert row["unreadable_image"].endswith("toy/2.png")
    assert row["sample"] == "drawn-2"
    printed = capsys.readouterr().out
    assert printed.count("2.png: there is no such file; sample drawn-2 is replaced by drawn-") == 1
    assert "(1 unreadable of at most 1 images)" in printed
    assert "| unreadable images 1" in printed
    assert all(np.isfinite(losses(last)))


@pytest.mark.slow
def test_an_image_that_can_be_read_on_the_second_try_changes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    path = workspace(stages=[STAGE])
    expected = weights(run(path))
    shutil.rmtree("checkpoints")
    load, tried = SampleStore.load_image, set[int]()

    def fail_once(store: SampleStore, image_id: int) -> Image.Image:
        if image_id not in tried:
            tried.add(image_id)
            raise ImageError(DropReason.MISSING_FILE, "stale file handle")
        return load(store, image_id)

    monkeypatch.setattr(SampleStore, "load_image", fail_once)
    last = run(path)
    assert same(weights(last), expected)
    assert not unreadable(last)
    assert waits == [image_io.RETRY_SECONDS[0]] * len(tried)


@pytest.mark.slow
def test_loading_workers_and_a_resumed_run_choose_and_count_as_one_uninterrupted_process_does(workspace: Workspace) -> None:
    path = workspace(stages=[STAGE], save_steps=1, save_total_limit=9, max_unreadable_images=0.2)
    for number in (2, 5):
        (DATA / f"{number}.png").write_bytes(b"damaged")
    uninterrupted = run(path)
    expected, rows, expected_losses = weights(uninterrupted), unreadable(uninterrupted), losses(uninterrupted)
    assert {row["sample"] for row in rows} == {"drawn-2", "drawn-5"}
    for step in (3, 4):
        shutil.rmtree(uninterrupted.parent / f"checkpoint-{step}")
    resumed = run(path, "train.dataloader_num_workers=2", resume="auto")
    assert same(weights(resumed), expected)
    assert unreadable(resumed) == rows
    shutil.rmtree("checkpoints")
    loaded_in_workers = run(path, "train.dataloader_num_workers=2")
    assert same(weights(loaded_in_workers), expected)
    assert (unreadable(loaded_in_workers), losses(loaded_in_workers)) == (rows, expected_losses)


def test_too_many_unreadable_images_end_the_run_with_one_sentence(workspace: Workspace) -> None:
    path = workspace(stages=[STAGE])
    for number in (0, 1, 2):
        (DATA / f"{number}.png").unlink()
    with pytest.raises(
        TesseraError, match=r"3 of 11 images cannot be read any more, .*max_unreadable_images=0.2 allows 2; .*png: there is no"
    ):
        run(path, "train.max_unreadable_images=0.2")
    shutil.rmtree("checkpoints", ignore_errors=True)
    with pytest.raises(TesseraError, match=r"1 of 11 images .*max_unreadable_images=0 allows 0"):
        run(path, "train.max_unreadable_images=0")


def test_a_validation_sample_without_its_image_is_left_out_of_the_loss(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(per_device_train_batch_size=1)
    (DATA / "9.png").unlink()
    last = run(path)
    tokens = [row["eval_tokens"] for row in state(last).history if "eval_tokens" in row]
    setup = setup_run(configuration.load(path))
    assert setup.validation is not None
    read = [setup.validation[SampleKey(index, 0)] for index in range(4)]
    supervised = [sum(label != IGNORE_INDEX for label in example.encoded.labels) for example in read]
    assert [count == 0 for count in supervised] == [False, True, False, False]
    assert tokens == [sum(supervised)]
    assert f"over {tokens[0]} tokens, 1 samples left out" in capsys.readouterr().out
    assert [row["sample"] for row in unreadable(last)] == ["drawn-9"]


def test_validation_without_a_single_readable_image_ends_the_run(workspace: Workspace) -> None:
    path = workspace()
    for number in (8, 9, 10, 11):
        (DATA / f"{number}.png").unlink()
    with pytest.raises(TesseraError, match=r"step 2: not a single image of the validation samples can be read any more"):
        run(path, "train.max_unreadable_images=0.9")


@pytest.mark.parametrize("batching", ["padded", pytest.param("packed", marks=pytest.mark.slow)])
def test_without_a_substitute_the_place_stays_empty_even_if_it_is_a_whole_step(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], batching: str
) -> None:
    monkeypatch.setattr(unreadable_images, "MAX_SUBSTITUTES", 0)
    path = workspace(stages=[{**STAGE, "epochs": 1}], batching=batching, packing_length=128, per_device_train_batch_size=1)
    (DATA / "2.png").unlink()
    last = run(path)
    assert sorted(losses(last))[0] == 0.0
    assert all(np.isfinite(losses(last)))
    assert "sample drawn-2 is left out" in capsys.readouterr().out
    setup = setup_run(configuration.load(path))
    data = TrainingData(setup.store, setup.lengths, setup.processor, 0)
    assert set(data[SampleKey(2, 0)].encoded.labels) == {IGNORE_INDEX}
    assert not data[SampleKey(2, 0)].images["pixel_values"].any()
    assert data[SampleKey(2, 0)].unreadable_images[0].replaced_by is None


def test_images_of_all_ranks_are_counted_once_and_end_the_run_on_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (UnreadableImage(f"{name}.png", f"{name}.png: gone", name, "other") for name in "ab")
    group = SimpleNamespace(world_size=2, gather=lambda own: [own, [first, second]])
    history = History()
    counter = UnreadableImages(history, UnreadableLimit(0.5, 2), cast(ProcessGroup, group), print)
    counter.add_step([first], 7, "tune")
    assert not history.rows
    with pytest.raises(TesseraError, match=r"2 of 2 images cannot be read any more.*allows 1; the last one: b.png: gone"):
        counter.collect(7, "tune")
    assert [row["unreadable_image"] for row in history.rows] == ["a.png", "b.png"]
    assert capsys.readouterr().out.count("step 7: ") == 2
    assert UnreadableImages(history, UnreadableLimit(0.5, 2), cast(ProcessGroup, group), print).metrics() == {"unreadable_images": 2}


def test_a_sample_prediction_without_its_image_says_so(workspace: Workspace) -> None:
    path = workspace(num_logged_predictions=4)
    (DATA / "9.png").unlink()
    assert Path("checkpoints/toy/checkpoint-2") == run(path)
    assert Path("results/toy/answers.png").exists()


def test_substitutes_fit_into_the_place_and_depend_on_the_arguments_alone() -> None:
    lengths = np.random.default_rng(0).integers(10, 60, 200)
    for index in range(200):
        chosen = substitutes(lengths, index, seed=3, epoch=1)
        assert index not in chosen
        assert all(lengths[other] <= lengths[index] for other in chosen)
        assert chosen == substitutes(lengths.copy(), index, seed=3, epoch=1)
    longest = int(lengths.argmax())
    assert len(substitutes(lengths, longest, 3, 1)) == MAX_SUBSTITUTES
    assert all(lengths[other] > 45 for other in substitutes(lengths, longest, 3, 1))
    assert len({tuple(substitutes(lengths, longest, 3, epoch)) for epoch in range(5)}) > 1


def test_a_small_share_allows_one_image_and_none_allows_no_image() -> None:
    assert UnreadableLimit(0.001, 10).allowed == 1
    assert UnreadableLimit(0.001, 454_000).allowed == 454
    assert UnreadableLimit(0.0, 454_000).allowed == 0
