"""Interrupted evaluations resume from cached predictions, which are never reused for another model, decoding or question."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from answering.protocol import ImageInput
from answering.request_images import load_image
from evaluation.report.report_notes import remarks
from evaluation.run.evaluation_setup import Experiment
from tests.evaluation.fakes import COLORS, experiment, lines, mostly_right, questions, run, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always


def test_an_interrupted_run_resumes_and_writes_the_same_file(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10))
    complete, killed = experiment(store, tmp_path / "whole"), experiment(store, tmp_path / "killed")
    run(complete, FakeAnswerer(mostly_right), scorer=FakeScorer(*COLORS))
    with pytest.raises(KeyboardInterrupt):
        run(killed, FakeAnswerer(mostly_right, interrupt_after=20), scorer=FakeScorer(*COLORS))
    path = tmp_path / "killed" / "predictions" / "ours.jsonl"
    assert len(lines(path)) == 16
    path.write_bytes(path.read_bytes()[:-40])  # killed in the middle of a line
    again, scorer = FakeAnswerer(mostly_right), FakeScorer(*COLORS)
    run(killed, again, scorer=scorer)
    assert len(again.asked) == 40 - 8  # one chunk of eight is complete
    assert scorer.scored == 40 - 8
    assert scorer.seen == 40  # in the same batches as in an uninterrupted run
    assert path.read_bytes() == (tmp_path / "whole" / "predictions" / "ours.jsonl").read_bytes()


class LoadingScorer(FakeScorer):
    """Loads the images that it scores."""

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        for image in images:
            load_image(image)
        return super().score_batch(images, texts)


def test_an_image_missing_at_scoring_fails_only_its_own_questions(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    (tmp_path / "data" / "1.png").unlink()
    summary = run(experiment(store, tmp_path / "out"), FakeAnswerer(mostly_right), scorer=LoadingScorer(*COLORS)).record()
    assert summary["systems"]["ours"]["errors"] == 4
    for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl"):
        assert ("1.png" in (row["error"] or "")) is ("-1-" in row["sample_id"])
        assert bool(row["candidates"]) is ("-1-" not in row["sample_id"])
        assert all("clip" in candidate for candidate in row["candidates"])


def test_scored_answers_are_kept_when_their_image_is_missing_later(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(10)), tmp_path / "out")
    path = tmp_path / "out" / "predictions" / "ours.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(planned, FakeAnswerer(mostly_right, interrupt_after=20), scorer=LoadingScorer(*COLORS))
    before = lines(path)
    missing = before[0]["sample_id"].split("-")[1]
    (tmp_path / "data" / f"{missing}.png").unlink()
    run(planned, FakeAnswerer(mostly_right), scorer=LoadingScorer(*COLORS))
    after = lines(path)
    assert [row["error"] for row in after[: len(before)]] == [None] * len(before)
    failed = {row["sample_id"] for row in after if row["error"] is not None}
    assert failed == {row["sample_id"] for row in after[len(before) :] if row["sample_id"].split("-")[1] == missing}


def test_a_finished_run_answers_nothing_again(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    planned = experiment(store, tmp_path / "out")
    first = run(planned, FakeAnswerer(mostly_right)).record()
    again = FakeAnswerer(mostly_right)
    assert run(planned, again).record() == first
    assert again.asked == []


def test_cached_answers_are_not_reused_for_another_model_decoding_or_question(tmp_path: Path) -> None:
    samples = questions(2)
    planned = experiment(write_store(tmp_path / "data", samples), tmp_path / "out")
    run(planned, FakeAnswerer(mostly_right, settings={"rank": 8}))

    def num_answered(changed: Experiment, **settings: object) -> int:
        answerer = FakeAnswerer(mostly_right, settings=settings)
        run(changed, answerer)
        return len(answerer.asked)

    assert num_answered(planned, rank=8) == 0
    assert num_answered(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, batch_size=1)), rank=8) == 0
    assert num_answered(planned, rank=16) == 8
    assert num_answered(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, num_candidates=2)), rank=16) == 8
    run(planned, FakeAnswerer(mostly_right))
    samples[0]["messages"][0]["content"] += "!"
    # The changed question and the others of its chunk.
    assert num_answered(dataclasses.replace(planned, store=write_store(tmp_path / "data", samples))) == 6


def test_the_same_question_in_two_samples_has_two_cached_answers(tmp_path: Path) -> None:
    rows = [sample("a", 0, "What is it?", ["cat"] * 10), sample("b", 0, "What is it?", ["dog"] * 10)]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out")
    path = tmp_path / "out" / "predictions" / "ours.jsonl"
    for answerer in (FakeAnswerer(always(("cat", -0.1))), FakeAnswerer(always(("cat", -0.1)))):
        summary = run(planned, answerer).record()
        assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == 0.5
        assert {row["sample_id"] for row in lines(path)} == {"a", "b"}


def test_a_checkpoint_retrained_in_the_same_folder_is_another_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"old")
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out")
    settings: dict[str, object] = {"path": str(folder)}
    run(planned, FakeAnswerer(mostly_right, settings=settings))
    (folder / "adapter_model.safetensors").write_bytes(b"newer")
    again = FakeAnswerer(mostly_right, settings=settings)
    run(planned, again)
    assert len(again.asked) == 4
    assert any("its answers are not used, they were given with another content of the model's files" in text for text in caplog.messages)


def test_a_copied_checkpoint_is_the_same_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out")
    run(planned, FakeAnswerer(mostly_right, settings={"path": str(folder)}))
    copied = shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile)
    os.utime(copied / "adapter_model.safetensors", ns=(1, 1))
    again = FakeAnswerer(mostly_right, settings={"path": str(copied)})
    run(planned, again)
    assert again.asked == []
    assert not any("not used" in text for text in caplog.messages)


def test_another_scorer_scores_cached_answers_again(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(2)), tmp_path / "out")
    run(planned, FakeAnswerer(mostly_right))
    again = FakeAnswerer(mostly_right)
    summary = run(planned, again, scorer=FakeScorer(*COLORS)).record()
    assert again.asked == []
    assert summary["systems"]["ours"]["choices"]["clip"]["vqa_accuracy"] > 0.3
    scorer = FakeScorer(*COLORS)
    assert run(planned, again, scorer=scorer).record() == summary
    assert (scorer.seen, scorer.scored) == (0, 0)
    without_scorer = run(planned, again).record()
    assert "rerank" not in without_scorer
    assert "clip" not in without_scorer["systems"]["ours"]["choices"]


def test_decoding_without_cuda_graphs_is_reported_with_the_speed_also_after_resuming(tmp_path: Path) -> None:
    class Slower(FakeAnswerer):
        cuda_graphs_error: str | None = "a replay is off by 10.0% of the largest value"

    planned = experiment(write_store(tmp_path / "data", questions(6)), tmp_path / "out")
    plain = run(planned, FakeAnswerer(mostly_right)).record()["systems"]["ours"]
    assert "without_cuda_graphs" not in plain
    other = dataclasses.replace(planned, out=tmp_path / "other")
    assert run(other, Slower(mostly_right)).record()["systems"]["ours"]["without_cuda_graphs"] == Slower.cuda_graphs_error
    # Nothing is answered again: the saved speed was measured without CUDA graphs.
    again = run(other, FakeAnswerer(mostly_right)).summary
    assert again.systems["ours"].without_cuda_graphs == Slower.cuda_graphs_error
    assert any(f"ours: decoding ran without CUDA graphs and was slower: {Slower.cuda_graphs_error}." in line for line in remarks(again))
