"""Evaluation runs on fake systems: questions, choices and figures."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from answering.config import RerankConfig, RerankWeights
from answering.protocol import Request
from evaluation.schema.summary_file import read_summary
from tests.evaluation.fakes import COLORS, experiment, lines, mostly_right, questions, run, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always


def test_the_summary_equals_values_computed_by_hand(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(6))
    evaluation_result = run(experiment(store, tmp_path / "out"), FakeAnswerer(mostly_right), scorer=FakeScorer(*COLORS))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary == evaluation_result.record()
    assert read_summary(tmp_path / "out" / "summary.json") == evaluation_result.summary
    assert summary["schema_version"] == 3
    tasks = {"vqa": 18, "caption": 6}
    assert summary["dataset"] == {
        "name": "planted",
        "split": "test",
        "questions": 24,
        "images": 6,
        "by_task": tasks,
        "fewest_references": 10,
    }
    ours = summary["systems"]["ours"]
    assert (ours["kind"], ours["errors"]) == ("checkpoint", 0)
    assert ours["questions_per_second"] > 0
    assert ours["distinct_candidates"] == pytest.approx((3 + 1 + 2 + 1) / 4)
    first, reranked, oracle = (ours["choices"][name] for name in ("first", "reranked", "oracle"))
    # English color: first "gray" (1 of 10: .3), best candidate 9 of 10 after normalisation. Chinese: officially wrong
    # because of its full stop, right after M4C (9 of 10). Count: wrong.
    assert first["questions"] == 18
    assert first["vqa_accuracy"] == pytest.approx(0.3 / 3)
    assert first["vqa_accuracy_m4c"] == pytest.approx((0.3 + 1.0) / 3)
    assert first["exact"] == pytest.approx(2 / 3)
    assert first["by_category"]["attribute"] == {"questions": 12, "vqa_accuracy": pytest.approx(0.15)}
    assert first["by_category"]["counting"] == {"questions": 6, "vqa_accuracy": 0.0}
    assert first["by_source"] == {"planted": {"questions": 18, "vqa_accuracy": pytest.approx(0.1)}}
    assert first["by_language"]["zh"] == {"questions": 6, "vqa_accuracy": 0.0}
    assert first["vqa_accuracy_ci95"][0] <= first["vqa_accuracy"] <= first["vqa_accuracy_ci95"][1]
    assert oracle["vqa_accuracy"] == pytest.approx(1 / 3)
    # "gray" and the color are almost equally likely (.8 * 1 + .2 * 0 against .8 * .9 + .2 * 1), so CLIP decides.
    assert reranked["vqa_accuracy"] == pytest.approx(1 / 3)
    assert ours["choices"]["clip"]["vqa_accuracy"] == pytest.approx(1 / 3)
    assert ours["captions"]["first"]["caption en"]["bleu_4"] == pytest.approx(1.0)
    assert summary["rerank"] == {
        "weights": {"likelihood": 0.8, "clip": 0.2},
        "chosen_on": "default",
        "scorer": "planted clip",
        "scorers": {"clip": "planted clip"},
        "clip_score_form": "softmax",
        "statement_form": "sentence",
        "background_images": 0,
        "skipped_question_types": ["yes/no", "counting"],
    }
    # Among short questions: a color question can gain, a count cannot, the Chinese question has one candidate.
    assert ours["can_change"] == {
        "several_candidates": 2 / 3,
        "score_can_change": 1 / 3,
        "score_can_rise": 1 / 3,
        "skipped": 1 / 3,
        "rerank_can_change": 1 / 3,
        "rerank_can_rise": 1 / 3,
    }


def test_visual_tokens_are_averaged_over_the_answered_questions(tmp_path: Path) -> None:
    rows = [sample(f"q{i}", tuple(range(i + 1)), "What color?", ["red"]) for i in range(3)]
    store = write_store(tmp_path / "data", rows)
    red = always(("red", -0.1))
    counting = run(experiment(store, tmp_path / "a"), FakeAnswerer(red, frozenset({"q2"}), visual_tokens=36)).record()
    assert counting["systems"]["ours"]["visual_tokens"] == 54.0, "one and two images; the question about three failed"
    assert [row.get("visual_tokens") for row in lines(tmp_path / "a" / "predictions" / "ours.jsonl")] == [36, 72, None]
    silent = run(experiment(store, tmp_path / "b"), FakeAnswerer(red)).record()
    assert "visual_tokens" not in silent["systems"]["ours"]


def test_visual_tokens_are_unknown_if_earlier_predictions_do_not_state_them(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(3)), tmp_path / "out")
    run(planned, FakeAnswerer(mostly_right, visual_tokens=36))
    assert run(planned, FakeAnswerer(mostly_right)).record()["systems"]["ours"]["visual_tokens"] == 36.0, "read from the file"
    path = tmp_path / "out" / "predictions" / "ours.jsonl"
    rows = lines(path)
    del rows[0]["visual_tokens"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    again = FakeAnswerer(mostly_right, visual_tokens=36)
    assert "visual_tokens" not in run(planned, again).record()["systems"]["ours"]
    assert again.asked == []


def test_predictions_contain_candidates_scores_and_choices(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    run(experiment(store, tmp_path / "out"), FakeAnswerer(mostly_right, settings={"rank": 8}), scorer=FakeScorer(*COLORS))
    rows = {row["sample_id"]: row for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl")}
    assert len(rows) == 8
    row = rows["test-1-color"]
    assert row["question"] == "What color is the disc?"
    assert [candidate["text"] for candidate in row["candidates"]] == ["gray", "blue", "mauve"]
    assert [candidate["clip"] for candidate in row["candidates"]] == [20.0, 25.0, 20.0]
    assert row["candidates"][0]["fused"] == pytest.approx(0.8)
    assert row["choices"].keys() == {"first", "clip", "reranked", "majority", "likelihood", "random"}
    assert row["scorers"] == {"clip": "planted clip, sentence"}
    assert row["choices"]["clip"] == "blue"
    assert row["error"] is None
    assert row["prompt"] == "<image>\nWhat color is the disc?"
    assert row["decoding"]["num_candidates"] == 3
    assert row["model"] == {"kind": "checkpoint", "rank": 8}


def test_without_a_scorer_the_summary_has_no_reranking(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    summary = run(experiment(store, tmp_path / "out"), FakeAnswerer(mostly_right)).record()
    assert "rerank" not in summary
    assert "controls" not in summary
    assert summary["systems"]["ours"]["choices"].keys() == {"first", "majority", "likelihood", "random", "oracle"}
    assert "clip" not in (tmp_path / "out" / "predictions" / "ours.jsonl").read_text(encoding="utf-8")


def test_a_failed_question_is_recorded_counts_as_wrong_and_is_repeated(tmp_path: Path) -> None:
    rows = [sample(f"s{i}", i, "Is it?", ["unknown"] * 10) for i in range(4)]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out")
    summary = run(planned, FakeAnswerer(always(("unknown", -1.0)), broken=frozenset({"s2"})), scorer=FakeScorer()).record()
    assert summary["systems"]["ours"]["errors"] == 1
    # A failed question also gets the text "unknown", but scores 0.
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == pytest.approx(3 / 4)
    assert summary["systems"]["ours"]["choices"]["oracle"]["vqa_accuracy"] == pytest.approx(3 / 4)
    (failed,) = [row for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl") if row["error"]]
    assert (failed["sample_id"], failed["error"], failed["candidates"]) == ("s2", "the picture is upside down", [])
    repaired = FakeAnswerer(always(("unknown", -1.0)))
    assert run(planned, repaired, scorer=FakeScorer()).record()["systems"]["ours"]["errors"] == 0
    assert "s2" in repaired.asked


def test_the_running_accuracy_is_that_of_the_first_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The official normalisation maps the reference "a" to the empty text, but an empty choice becomes "unknown".
    rows = [sample(f"s{i}", i, "Which letter?", ["a"] * 9 + ["A."]) for i in range(2)]
    answerer = FakeAnswerer(always(("", -0.1)))
    summary = run(experiment(write_store(tmp_path / "data", rows), tmp_path / "out"), answerer).record()
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == 0.0
    assert "ours: 2/2 questions" in (progress := capsys.readouterr().err)
    assert "accuracy 0.000" in progress


def test_a_limit_selects_the_same_questions_for_every_system_and_a_higher_one_a_superset(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10))
    asked = []
    for limit in (7, 20):
        one, other = FakeAnswerer(mostly_right), FakeAnswerer(mostly_right)
        evaluation_result = run(experiment(store, tmp_path / str(limit), "one", "other", limit=limit), one, other)
        assert evaluation_result.record()["dataset"]["questions"] == len(one.asked) == limit
        assert one.asked == other.asked
        asked.append(set(one.asked))
    assert asked[0] < asked[1]


def test_captions_may_be_longer_than_short_answers(tmp_path: Path) -> None:
    answerer = FakeAnswerer(mostly_right)
    run(experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", description_tokens=50), answerer)
    assert answerer.decodings["test-0-color"].max_new_tokens == 16
    assert answerer.decodings["test-0-caption"].max_new_tokens == 50


def test_every_pair_of_systems_is_compared(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(40))

    def perfect(request: Request) -> Sequence[tuple[str, float]]:
        i = int(request.request_id.split("-")[1]) % 6
        return [(COLORS[i] if "color" in request.request_id else "1", -0.1)]

    planned = experiment(store, tmp_path / "out", "good", "poor", "poor-again")
    answerers = FakeAnswerer(perfect), FakeAnswerer(mostly_right), FakeAnswerer(mostly_right)
    rows = run(planned, *answerers, scorer=FakeScorer()).record()["comparisons"]
    verdicts = {(row["a"], row["b"]): row["verdict"] for row in rows}
    assert verdicts == {
        ("good/reranked", "good/first"): "not shown",
        ("poor/reranked", "poor/first"): "not shown",
        ("poor-again/reranked", "poor-again/first"): "not shown",
        ("good/first", "poor/first"): "a",
        ("good/reranked", "poor/reranked"): "a",
        ("good/first", "poor-again/first"): "a",
        ("good/reranked", "poor-again/reranked"): "a",
        ("poor/first", "poor-again/first"): "not shown",
        ("poor/reranked", "poor-again/reranked"): "not shown",
    }
    for row in rows:
        assert row["p_value"] <= row["p_holm"] <= 1
        if row["verdict"] == "not shown":
            assert (row["difference"], row["p_value"]) == (0.0, 1.0)


def test_control_runs_of_the_first_checkpoint_are_made_and_compared(tmp_path: Path) -> None:
    rows = [row for row in questions(12) if "color" in row["sample_id"]]
    store = write_store(tmp_path / "data", rows)

    def sees(request: Request) -> Sequence[tuple[str, float]]:
        (path,) = request.images
        assert isinstance(path, Path)
        return [(COLORS[int(path.stem) % 6], -0.1)]

    planned = experiment(store, tmp_path / "out", "ours", "other", controls=("shuffled_images", "untuned"))
    # Only the first candidate counts; the second one would be right for every sixth disc.
    blind = FakeAnswerer(always(("white", -0.1), ("red", -0.2)))
    summary = run(planned, FakeAnswerer(sees), FakeAnswerer(sees), untuned=blind).record()
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == pytest.approx(1.0)
    assert summary["controls"]["shuffled_images"]["vqa_accuracy"] < 0.5
    assert summary["controls"]["untuned"]["vqa_accuracy"] == 0.0
    assert {row["b"]: row["verdict"] for row in summary["comparisons"] if row["a"] == "ours/first" and "controls" in row["b"]} == {
        "controls/shuffled_images": "a",
        "controls/untuned": "a",
    }


def test_a_split_without_short_answers_has_only_caption_metrics(tmp_path: Path) -> None:
    rows = [row for row in questions(3) if row["task"] == "caption"]
    summary = run(experiment(write_store(tmp_path / "data", rows), tmp_path / "out"), FakeAnswerer(mostly_right)).record()
    assert summary["systems"]["ours"]["choices"] == {}
    assert summary["comparisons"] == []
    assert summary["systems"]["ours"]["captions"]["first"]["caption en"]["rouge_l"] == pytest.approx(1.0)


def test_weights_are_tuned_on_the_validation_split_and_only_there(tmp_path: Path) -> None:
    # CLIP is always right on the validation split and always wrong on the test split: tuning must follow validation.
    rows = [sample(f"v{i}", i, "What color is the disc?", ["red"] * 10, split="validation") for i in range(6)]
    rows += [sample(f"t{i}", 10 + i, "What color is the disc?", ["gray"] * 10) for i in range(6)]
    store = write_store(tmp_path / "data", rows)
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True))
    answerer = FakeAnswerer(always(("gray", -0.1), ("red", -0.5)))
    summary = run(planned, answerer, scorer=FakeScorer("red")).record()
    rerank = summary["rerank"]
    assert (rerank["weights"], rerank["chosen_on"]) == ({"likelihood": 0.45, "clip": 0.55}, "validation")
    assert rerank["validation"]["tuned_held_out"] == rerank["validation"]["oracle"] == 1.0
    assert rerank["validation"]["configured"] == 0.0
    assert summary["systems"]["ours"]["choices"]["reranked"]["vqa_accuracy"] == 0.0
    assert len(lines(tmp_path / "out" / "predictions" / "validation" / "ours.jsonl")) == 6


def test_tuning_without_a_gain_keeps_the_configured_weights(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2) + questions(2, "validation"))
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True, weights=RerankWeights(likelihood=0.6, clip=0.4)))
    answerer = FakeAnswerer(always(("mauve", -0.1), ("pink", -0.2)))
    rerank = run(planned, answerer, scorer=FakeScorer("pink")).record()["rerank"]
    assert (rerank["weights"], rerank["chosen_on"]) == ({"likelihood": 0.6, "clip": 0.4}, "default")
