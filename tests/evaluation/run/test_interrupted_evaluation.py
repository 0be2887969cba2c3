"""What was answered is kept: a run that was killed goes on, and nothing is taken for the answer of another system or question."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from answering.protocol import ImageInput
from answering.request_images import load_image
from evaluation.report.result_tables import remarks
from evaluation.run.evaluation_setup import Experiment
from tests.evaluation.planted import (
    COLORS,
    PlantedAnswerer,
    PlantedScorer,
    always,
    experiment,
    lines,
    mostly_right,
    questions,
    run,
    sample,
    write_store,
)


def test_a_killed_run_continues_and_gives_the_same_file(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10))
    whole, killed = experiment(store, tmp_path / "whole"), experiment(store, tmp_path / "killed")
    run(whole, PlantedAnswerer(mostly_right), scorer=PlantedScorer(*COLORS))
    with pytest.raises(KeyboardInterrupt):
        run(killed, PlantedAnswerer(mostly_right, interrupt_after=20), scorer=PlantedScorer(*COLORS))
    path = tmp_path / "killed" / "predictions" / "ours.jsonl"
    assert len(lines(path)) == 16
    path.write_bytes(path.read_bytes()[:-40])  # the kill came in the middle of a line
    again, scorer = PlantedAnswerer(mostly_right), PlantedScorer(*COLORS)
    run(killed, again, scorer=scorer)
    assert len(again.asked) == 40 - 8  # one chunk of eight is whole
    assert scorer.scored == 40 - 8
    assert scorer.seen == 40  # in the same company as in a run that was not killed
    assert path.read_bytes() == (tmp_path / "whole" / "predictions" / "ours.jsonl").read_bytes()


class Looking(PlantedScorer):
    """Opens the pictures that it scores."""

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        for image in images:
            load_image(image)
        return super().score_batch(images, texts)


def test_a_image_that_went_when_its_question_was_answered_fails_its_questions_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    (tmp_path / "data" / "1.png").unlink()
    summary = run(experiment(store, tmp_path / "out"), PlantedAnswerer(mostly_right), scorer=Looking(*COLORS)).summary
    assert summary["systems"]["ours"]["errors"] == 4
    for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl"):
        assert ("1.png" in (row["error"] or "")) is ("-1-" in row["sample_id"])
        assert bool(row["candidates"]) is ("-1-" not in row["sample_id"])
        assert all("clip" in candidate for candidate in row["candidates"])


def test_answers_that_were_scored_stay_when_their_image_has_gone(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(10)), tmp_path / "out")
    path = tmp_path / "out" / "predictions" / "ours.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(planned, PlantedAnswerer(mostly_right, interrupt_after=20), scorer=Looking(*COLORS))
    before = lines(path)
    gone = before[0]["sample_id"].split("-")[1]
    (tmp_path / "data" / f"{gone}.png").unlink()
    run(planned, PlantedAnswerer(mostly_right), scorer=Looking(*COLORS))
    after = lines(path)
    assert [row["error"] for row in after[: len(before)]] == [None] * len(before)
    failed = {row["sample_id"] for row in after if row["error"] is not None}
    assert failed == {row["sample_id"] for row in after[len(before) :] if row["sample_id"].split("-")[1] == gone}


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    planned = experiment(store, tmp_path / "out")
    first = run(planned, PlantedAnswerer(mostly_right)).summary
    again = PlantedAnswerer(mostly_right)
    assert run(planned, again).summary == first
    assert again.asked == []


def test_old_answers_are_not_taken_for_another_model_decoding_or_question(tmp_path: Path) -> None:
    samples = questions(2)
    planned = experiment(write_store(tmp_path / "data", samples), tmp_path / "out")
    run(planned, PlantedAnswerer(mostly_right, settings={"rank": 8}))

    def asked(changed: Experiment, **settings: object) -> int:
        answerer = PlantedAnswerer(mostly_right, settings=settings)
        run(changed, answerer)
        return len(answerer.asked)

    assert asked(planned, rank=8) == 0
    assert asked(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, batch_size=1)), rank=8) == 0
    assert asked(planned, rank=16) == 8
    assert asked(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, num_candidates=2)), rank=16) == 8
    run(planned, PlantedAnswerer(mostly_right))
    samples[0]["messages"][0]["content"] += "!"
    # The changed question and the others of its chunk.
    assert asked(dataclasses.replace(planned, store=write_store(tmp_path / "data", samples))) == 6


def test_the_same_question_in_two_samples_keeps_both_answers_when_it_is_run_again(tmp_path: Path) -> None:
    rows = [sample("a", 0, "What is it?", ["cat"] * 10), sample("b", 0, "What is it?", ["dog"] * 10)]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out")
    path = tmp_path / "out" / "predictions" / "ours.jsonl"
    for answerer in (PlantedAnswerer(always(("cat", -0.1))), PlantedAnswerer(always(("cat", -0.1)))):
        summary = run(planned, answerer).summary
        assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == 0.5
        assert {row["sample_id"] for row in lines(path)} == {"a", "b"}


def test_a_checkpoint_trained_again_in_its_folder_is_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"old")
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out")
    settings: dict[str, object] = {"path": str(folder)}
    run(planned, PlantedAnswerer(mostly_right, settings=settings))
    (folder / "adapter_model.safetensors").write_bytes(b"newer")
    again = PlantedAnswerer(mostly_right, settings=settings)
    run(planned, again)
    assert len(again.asked) == 4


def test_another_scorer_scores_old_answers_anew(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(2)), tmp_path / "out")
    run(planned, PlantedAnswerer(mostly_right))
    again = PlantedAnswerer(mostly_right)
    summary = run(planned, again, scorer=PlantedScorer(*COLORS)).summary
    assert again.asked == []
    assert summary["systems"]["ours"]["choices"]["clip"]["vqa_accuracy"] > 0.3
    scorer = PlantedScorer(*COLORS)
    assert run(planned, again, scorer=scorer).summary == summary
    assert (scorer.seen, scorer.scored) == (0, 0)
    bare = run(planned, again).summary
    assert "rerank" not in bare
    assert "clip" not in bare["systems"]["ours"]["choices"]


def test_decoding_that_lost_its_cuda_graphs_is_said_with_the_speed_also_when_the_run_is_continued(tmp_path: Path) -> None:
    class Slower(PlantedAnswerer):
        cuda_graphs_error: str | None = "a replay is off by 10.0% of the largest value"

    planned = experiment(write_store(tmp_path / "data", questions(6)), tmp_path / "out")
    plain = run(planned, PlantedAnswerer(mostly_right)).summary["systems"]["ours"]
    assert "without_cuda_graphs" not in plain
    other = dataclasses.replace(planned, out=tmp_path / "other")
    assert run(other, Slower(mostly_right)).summary["systems"]["ours"]["without_cuda_graphs"] == Slower.cuda_graphs_error
    # Nothing is asked again: what the file says of the speed was measured without graphs.
    again = run(other, PlantedAnswerer(mostly_right)).summary
    assert again["systems"]["ours"]["without_cuda_graphs"] == Slower.cuda_graphs_error
    assert any(f"ours: decoding went on without CUDA graphs, slower: {Slower.cuda_graphs_error}." in line for line in remarks(again))
