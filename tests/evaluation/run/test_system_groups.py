"""Groups of seeds, learning curves and corrupted images: from the settings to summary and charts."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from answering.config import CheckpointSystem
from answering.protocol import Request
from errors import UsageError
from evaluation.config import Thresholds
from evaluation.report.examples import examples
from evaluation.report.write_report import write_report
from evaluation.run.system_selection import check_groups, learning_curve_settings, list_checkpoints
from tests.evaluation.fakes import COLORS, evaluate, experiment, questions, write_store
from tests.fakes import FakeAnswerer, Say, always


def right_on(share: float, seed: int) -> Say:
    """Gives the right color for this fraction of the images."""

    def say(request: Request) -> list[tuple[str, float]]:
        i = int(request.request_id.split("-")[1])
        return [(COLORS[i % 6] if random.Random(f"{seed} {i}").random() < share else "mauve", -0.1)]

    return say


def colors(images: int) -> list[dict[str, Any]]:
    return [row for row in questions(images) if "color" in row["sample_id"]]


def fail_to_load(system: object) -> FakeAnswerer:
    pytest.fail(f"{system} was loaded untuned")


def test_a_group_of_seeds_is_reported_as_mean_and_spread_and_compared_as_one_unit(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", colors(60))
    planned = experiment(store, tmp_path / "out", "seed0", "seed1", "base", groups={"ours": ("seed0", "seed1")})
    answerers = {"seed0": right_on(0.9, 0), "seed1": right_on(0.8, 1), "base": right_on(0.3, 2)}
    evaluation_result = evaluate(planned, lambda system: FakeAnswerer(answerers[system.name]), fail_to_load)
    summary = evaluation_result.record()
    member_accuracies = [summary["systems"][name]["choices"]["first"]["vqa_accuracy"] for name in ("seed0", "seed1")]
    assert member_accuracies[0] != member_accuracies[1]
    group = summary["groups"]["ours"]
    assert group["systems"] == ["seed0", "seed1"]
    accuracy = group["choices"]["first"]["vqa_accuracy"]
    assert accuracy["mean"] == pytest.approx(sum(member_accuracies) / 2)
    assert accuracy["sd"] == pytest.approx(abs(member_accuracies[0] - member_accuracies[1]) / 2**0.5)
    assert (accuracy["lowest"], accuracy["highest"]) == (pytest.approx(min(member_accuracies)), pytest.approx(max(member_accuracies)))
    (row,) = summary["comparisons"]
    assert {row["a"], row["b"]} == {"ours/first", "base/first"}
    assert row["verdict"] == ("a" if row["a"] == "ours/first" else "b")
    assert "mcnemar" not in row
    page = write_report(evaluation_result, planned).read_text(encoding="utf-8")
    assert "ours (mean of 2 seeds) answers" in page
    assert "Mean and spread over seeds" in page


def test_the_checkpoints_of_a_run_form_a_learning_curve_and_are_compared_with_the_last(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", colors(60))
    planned = experiment(store, tmp_path / "out", controls=("untuned",), thresholds=Thresholds(untuned=0.5))
    folders = [tmp_path / "run" / f"checkpoint-{step}" for step in (1000, 20, 300)]
    for folder in folders:
        folder.mkdir(parents=True)
    checkpoints = list_checkpoints(tmp_path / "run")
    assert [folder.name for folder in checkpoints] == ["checkpoint-20", "checkpoint-300", "checkpoint-1000"]
    systems = tuple(CheckpointSystem(name=folder.name, kind="checkpoint", path=str(folder)) for folder in checkpoints)
    settings = learning_curve_settings(dataclasses.replace(planned.settings, systems=systems))
    assert (settings.controls, settings.thresholds) == ((), Thresholds())
    planned = dataclasses.replace(planned, settings=settings)
    shares = {"checkpoint-20": 0.1, "checkpoint-300": 0.6, "checkpoint-1000": 0.9}
    evaluation_result = evaluate(planned, lambda system: FakeAnswerer(right_on(shares[system.name], 0)), fail_to_load)
    assert evaluation_result.record()["curve"] == {"checkpoint-20": 20, "checkpoint-300": 300, "checkpoint-1000": 1000}
    pairs = [(row["a"], row["b"]) for row in evaluation_result.record()["comparisons"]]
    assert pairs == [("checkpoint-1000/first", "checkpoint-20/first"), ("checkpoint-1000/first", "checkpoint-300/first")]
    page = write_report(evaluation_result, planned)
    assert "From step 20 to step 1,000 accuracy goes from" in page.read_text(encoding="utf-8")
    assert (page.parent / "learning_curve.png").is_file()


def test_questions_are_repeated_on_corrupted_images_and_compared_with_the_clean_ones(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", colors(12))
    seen: list[Path] = []

    def sees(request: Request) -> list[tuple[str, float]]:
        (path,) = request.images
        assert isinstance(path, Path)
        assert path.is_file()
        i = int(request.request_id.split("-")[1])
        if path.parent != tmp_path / "data":
            seen.append(path)
        return [(COLORS[i % 6] if path.parent == tmp_path / "data" else "mauve", -0.1)]

    settings: dict[str, Any] = {"corruptions": ("noise", "dark"), "corruption_strengths": (5, 1), "corruption_limit": 7}
    evaluation_result = evaluate(experiment(store, tmp_path / "out", **settings), lambda _: FakeAnswerer(sees), fail_to_load)
    robust = evaluation_result.record()["robustness"]["ours"]
    assert robust["questions"] == 7
    assert robust["clean"]["vqa_accuracy"] == pytest.approx(1.0)
    assert {kind: [point["strength"] for point in points] for kind, points in robust["corrupted"].items()} == {
        "noise": [1, 5],
        "dark": [1, 5],
    }
    assert all(point["vqa_accuracy"] == 0.0 for points in robust["corrupted"].values() for point in points)
    assert len(seen) == 7 * 4
    assert not any(path.exists() for path in seen)
    planned = experiment(store, tmp_path / "out", **settings)
    assert (write_report(evaluation_result, planned).parent / "robustness.png").is_file()
    # Cached answers are reused.
    again = FakeAnswerer(sees)
    evaluate(planned, lambda _: again, fail_to_load)
    assert again.asked == []


def test_every_metric_of_every_question_is_saved_at_full_precision(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    planned = experiment(store, tmp_path / "out")
    evaluation_result = evaluate(planned, lambda _: FakeAnswerer(always(("a red disc on white", -0.1))), fail_to_load)
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores" / "ours.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 16
    short = [row["scores"]["first"] for row in rows if "vqa_accuracy" in row["scores"]["first"]]
    measured = evaluation_result.record()["systems"]["ours"]["choices"]["first"]
    assert {"anls", "bidirectional", "vqa_accuracy_m4c"} < short[0].keys()
    for name in short[0]:
        assert sum(scores[name] for scores in short) / len(short) == pytest.approx(measured[name], abs=1e-12)
    captions = [row["scores"]["first"] for row in rows if "cider_d" in row["scores"]["first"]]
    corpus = evaluation_result.record()["systems"]["ours"]["captions"]["first"]["caption en"]
    assert sum(scores["cider_d"] for scores in captions) / 4 == pytest.approx(corpus["cider_d"], abs=1e-12)
    assert len(examples(evaluation_result)) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": {"g": ("a",)}}, r"eval\.groups\.g: expected at least two systems, found 1"),
        ({"groups": {"g": ("a", "z")}}, r"eval\.groups\.g: there is no system z"),
        ({"groups": {"a": ("a", "b")}}, r"eval\.groups\.a: a system has the same name"),
        ({"groups": {"g": ("a", "b"), "h": ("b", "c")}}, r"eval\.groups\.h: b is also in g"),
        ({"curve": True}, r"eval\.curve: a is not a checkpoint-<step> folder"),
        ({"curve": True, "groups": {"g": ("a", "b")}}, r"not supported together with eval\.curve"),
    ],
)
def test_invalid_groups_and_curves_are_errors(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    planned = experiment(write_store(tmp_path / "data", colors(1)), tmp_path / "out", "a", "b", "c", **settings)
    with pytest.raises(UsageError, match=message):
        check_groups(planned.settings)


def test_a_curve_needs_two_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(UsageError, match="at least two checkpoint-<step> folders, found 1"):
        list_checkpoints(tmp_path)


def test_corruptions_need_short_questions_with_images(tmp_path: Path) -> None:
    rows = [row for row in questions(2) if row["task"] == "caption"]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out", corruptions=("blur",))
    with pytest.raises(UsageError, match=r"eval\.corruptions"):
        evaluate(planned, fail_to_load, fail_to_load)
