"""The evaluation run on planted systems: what is asked, kept, chosen and counted."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from answering.config import CheckpointSystem, QwenVlSystem, RerankConfig, RerankWeights
from answering.protocol import Request
from errors import UsageError
from evaluation.asking import NamedScorer
from evaluation.config import Bars, EvalConfig
from evaluation.run import Experiment, Outcome, evaluate
from evaluation.tables import remarks
from tests.evaluation.planted import COLORS, COLORS_ZH, PlantedAnswerer, PlantedScorer, always, experiment, questions, sample, write_store


def by_the_book(request: Request) -> Sequence[tuple[str, float]]:
    """Right on color, in English after a wrong first candidate; always counts two."""
    i = int(request.request_id.split("-")[1]) % 6
    if "color" in request.request_id:
        return [("gray", -0.1), (COLORS[i], -0.2), ("mauve", -3.0)]
    if "zh" in request.request_id:
        return [(COLORS_ZH[i] + "。", -0.1)]
    if "count" in request.request_id:
        return [("2", -0.1), ("two discs", -0.5)]
    return [(f"a {COLORS[i]} disc on white", -0.1)]


def run(
    planned: Experiment, *answerers: PlantedAnswerer, scorer: PlantedScorer | None = None, untuned: PlantedAnswerer | None = None
) -> Outcome:
    systems = dict(zip((system.name for system in planned.settings.systems), answerers, strict=True))

    def load_untuned(system: object) -> PlantedAnswerer:
        assert untuned is not None, f"{system} was not to be loaded untuned"
        return untuned

    named = [] if scorer is None else [NamedScorer("planted clip", scorer)]
    return evaluate(planned, lambda system: systems[system.name], load_untuned, named)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_summary_holds_what_can_be_worked_out_by_hand(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(6))
    outcome = run(experiment(store, tmp_path / "out"), PlantedAnswerer(by_the_book), scorer=PlantedScorer(*COLORS))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary == outcome.summary
    assert summary["schema_version"] == 1
    assert summary["dataset"] == {"name": "planted", "split": "test", "questions": 24, "images": 6, "by_task": {"vqa": 18, "caption": 6}}
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
    # "gray" and the color are about as likely (.8 * 1 + .2 * 0 against .8 * .9 + .2 * 1), so that CLIP decides.
    assert reranked["vqa_accuracy"] == pytest.approx(1 / 3)
    assert ours["choices"]["clip"]["vqa_accuracy"] == pytest.approx(1 / 3)
    assert ours["captions"]["first"]["caption en"]["bleu_4"] == pytest.approx(1.0)
    assert summary["rerank"] == {
        "weights": {"likelihood": 0.8, "clip": 0.2},
        "chosen_on": "default",
        "scorer": "planted clip",
        "scorers": {"clip": "planted clip"},
        "form": "softmax",
        "wording": "sentence",
        "bank": 0,
        "left_alone": ["yes/no", "counting"],
    }
    # The caption apart: each color question can gain, a count cannot, the Chinese question has one candidate.
    assert ours["can_change"] == {"several_candidates": 2 / 3, "score_can_change": 1 / 3, "score_can_rise": 1 / 3}


def test_predictions_hold_candidates_scores_and_choices(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    run(experiment(store, tmp_path / "out"), PlantedAnswerer(by_the_book, settings={"rank": 8}), scorer=PlantedScorer(*COLORS))
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
    assert row["decoding"]["k"] == 3
    assert row["model"] == {"kind": "checkpoint", "rank": 8}


def test_without_a_scorer_nothing_is_said_of_reranking(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    summary = run(experiment(store, tmp_path / "out"), PlantedAnswerer(by_the_book)).summary
    assert "rerank" not in summary
    assert "controls" not in summary
    assert summary["systems"]["ours"]["choices"].keys() == {"first", "majority", "likelihood", "random", "oracle"}
    assert "clip" not in (tmp_path / "out" / "predictions" / "ours.jsonl").read_text(encoding="utf-8")


def test_shuffled_and_planted_references_change_no_candidate_and_no_choice(tmp_path: Path) -> None:
    rows = questions(8) + questions(4, "validation")
    texts = []
    for name, change in (("as they are", None), ("shuffled", "shuffle"), ("planted", "plant")):
        answers = [row["answers"] for row in rows]
        if change == "shuffle":
            random.Random(1).shuffle(answers)
        changed = [
            {**row, "answers": ["mauve"] * 10 if change == "plant" else answer, "targets": ["mauve"] if change == "plant" else answer[:1]}
            for row, answer in zip(rows, answers, strict=True)
        ]
        out = tmp_path / name
        run(experiment(write_store(tmp_path / "data", changed), out), PlantedAnswerer(by_the_book), scorer=PlantedScorer(*COLORS))
        texts.append((out / "predictions" / "ours.jsonl").read_bytes())
    assert texts[0] == texts[1] == texts[2]


def test_no_request_carries_a_reference(tmp_path: Path) -> None:
    secret = "xyzzy"
    store = write_store(tmp_path / "data", [sample(f"s{i}", i, "What is this?", [secret] * 10) for i in range(3)])
    seen: list[Request] = []

    def listen(request: Request) -> Sequence[tuple[str, float]]:
        seen.append(request)
        return [("nothing", -1.0)]

    run(experiment(store, tmp_path / "out"), PlantedAnswerer(listen), scorer=PlantedScorer())
    assert len(seen) == 3
    assert secret not in repr([dataclasses.asdict(request) for request in seen])
    assert secret not in (tmp_path / "out" / "predictions" / "ours.jsonl").read_text(encoding="utf-8")


def test_an_answerer_that_never_says_the_reference_is_never_credited(tmp_path: Path) -> None:
    rows = [sample(f"s{i}", i, "What color is the disc?", [color] * 10) for i, color in enumerate(COLORS)]
    rows += [sample("v", 9, "What color is the disc?", ["red"] * 10, split="validation")]
    store = write_store(tmp_path / "data", rows)
    never = PlantedAnswerer(always(("pink", -0.5), ("", -0.7), ("mauve", -1.0)))
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True))
    summary = run(planned, never, scorer=PlantedScorer(*COLORS)).summary
    for name, measures in summary["systems"]["ours"]["choices"].items():
        assert measures["vqa_accuracy"] == measures["vqa_accuracy_m4c"] == measures["exact"] == 0.0, name
    for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl"):
        candidates = {candidate["text"] or "unknown" for candidate in row["candidates"]}
        assert set(row["choices"].values()) <= candidates


def test_a_killed_run_continues_and_gives_the_same_file(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10))
    whole, killed = experiment(store, tmp_path / "whole"), experiment(store, tmp_path / "killed")
    run(whole, PlantedAnswerer(by_the_book), scorer=PlantedScorer(*COLORS))
    with pytest.raises(KeyboardInterrupt):
        run(killed, PlantedAnswerer(by_the_book, dies_after=20), scorer=PlantedScorer(*COLORS))
    path = tmp_path / "killed" / "predictions" / "ours.jsonl"
    assert len(lines(path)) == 16
    path.write_bytes(path.read_bytes()[:-40])  # the kill came in the middle of a line
    again, scorer = PlantedAnswerer(by_the_book), PlantedScorer(*COLORS)
    run(killed, again, scorer=scorer)
    assert len(again.asked) == 40 - 8  # one chunk of eight is whole
    assert scorer.scored == 40 - 8
    assert scorer.seen == 40  # in the same company as in a run that was not killed
    assert path.read_bytes() == (tmp_path / "whole" / "predictions" / "ours.jsonl").read_bytes()


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4))
    planned = experiment(store, tmp_path / "out")
    first = run(planned, PlantedAnswerer(by_the_book)).summary
    again = PlantedAnswerer(by_the_book)
    assert run(planned, again).summary == first
    assert again.asked == []


def test_old_answers_are_not_taken_for_another_model_decoding_or_question(tmp_path: Path) -> None:
    samples = questions(2)
    planned = experiment(write_store(tmp_path / "data", samples), tmp_path / "out")
    run(planned, PlantedAnswerer(by_the_book, settings={"rank": 8}))

    def asked(changed: Experiment, **settings: object) -> int:
        answerer = PlantedAnswerer(by_the_book, settings=settings)
        run(changed, answerer)
        return len(answerer.asked)

    assert asked(planned, rank=8) == 0
    assert asked(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, batch_size=1)), rank=8) == 0
    assert asked(planned, rank=16) == 8
    assert asked(dataclasses.replace(planned, decoding=dataclasses.replace(planned.decoding, k=2)), rank=16) == 8
    run(planned, PlantedAnswerer(by_the_book))
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
    run(planned, PlantedAnswerer(by_the_book, settings=settings))
    (folder / "adapter_model.safetensors").write_bytes(b"newer")
    again = PlantedAnswerer(by_the_book, settings=settings)
    run(planned, again)
    assert len(again.asked) == 4


def test_another_scorer_scores_old_answers_anew(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(2)), tmp_path / "out")
    run(planned, PlantedAnswerer(by_the_book))
    again = PlantedAnswerer(by_the_book)
    summary = run(planned, again, scorer=PlantedScorer(*COLORS)).summary
    assert again.asked == []
    assert summary["systems"]["ours"]["choices"]["clip"]["vqa_accuracy"] > 0.3
    scorer = PlantedScorer(*COLORS)
    assert run(planned, again, scorer=scorer).summary == summary
    assert (scorer.seen, scorer.scored) == (0, 0)
    bare = run(planned, again).summary
    assert "rerank" not in bare
    assert "clip" not in bare["systems"]["ours"]["choices"]


def test_a_failed_question_is_recorded_counts_as_wrong_and_is_asked_again(tmp_path: Path) -> None:
    rows = [sample(f"s{i}", i, "Is it?", ["unknown"] * 10) for i in range(4)]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out")
    summary = run(planned, PlantedAnswerer(always(("unknown", -1.0)), broken=frozenset({"s2"})), scorer=PlantedScorer()).summary
    assert summary["systems"]["ours"]["errors"] == 1
    # "unknown" stands for the failed answer too, but is not credited there.
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == pytest.approx(3 / 4)
    assert summary["systems"]["ours"]["choices"]["oracle"]["vqa_accuracy"] == pytest.approx(3 / 4)
    (failed,) = [row for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl") if row["error"]]
    assert (failed["sample_id"], failed["error"], failed["candidates"]) == ("s2", "the picture is upside down", [])
    mended = PlantedAnswerer(always(("unknown", -1.0)))
    assert run(planned, mended, scorer=PlantedScorer()).summary["systems"]["ours"]["errors"] == 0
    assert "s2" in mended.asked


def test_the_running_accuracy_is_that_of_the_first_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Officially an empty text equals a reference that is but an article; the choice is "unknown" instead.
    rows = [sample(f"s{i}", i, "Which letter?", ["a"] * 9 + ["A."]) for i in range(2)]
    answerer = PlantedAnswerer(always(("", -0.1)))
    summary = run(experiment(write_store(tmp_path / "data", rows), tmp_path / "out"), answerer).summary
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == 0.0
    assert "ours: 2/2 questions" in (said := capsys.readouterr().err)
    assert "accuracy 0.000" in said


def test_a_limit_asks_every_system_the_same_and_a_higher_one_more(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(10))
    asked = []
    for limit in (7, 20):
        one, other = PlantedAnswerer(by_the_book), PlantedAnswerer(by_the_book)
        outcome = run(experiment(store, tmp_path / str(limit), "one", "other", limit=limit), one, other)
        assert outcome.summary["dataset"]["questions"] == len(one.asked) == limit
        assert one.asked == other.asked
        asked.append(set(one.asked))
    assert asked[0] < asked[1]


def test_captions_may_be_longer_than_short_answers(tmp_path: Path) -> None:
    answerer = PlantedAnswerer(by_the_book)
    run(experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", description_tokens=50), answerer)
    assert answerer.decodings["test-0-color"].max_new_tokens == 16
    assert answerer.decodings["test-0-caption"].max_new_tokens == 50


def test_comparisons_take_every_pair_and_hold_over_all(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(40))

    def perfect(request: Request) -> Sequence[tuple[str, float]]:
        i = int(request.request_id.split("-")[1]) % 6
        return [(COLORS[i] if "color" in request.request_id else "1", -0.1)]

    planned = experiment(store, tmp_path / "out", "good", "poor", "poor-again")
    answerers = PlantedAnswerer(perfect), PlantedAnswerer(by_the_book), PlantedAnswerer(by_the_book)
    found = run(planned, *answerers, scorer=PlantedScorer()).summary["comparisons"]
    verdicts = {(row["a"], row["b"]): row["verdict"] for row in found}
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
    for row in found:
        assert row["p_value"] <= row["p_holm"] <= 1
        if row["verdict"] == "not shown":
            assert (row["difference"], row["p_value"]) == (0.0, 1.0)


def test_the_controls_of_the_first_checkpoint_are_asked_and_compared(tmp_path: Path) -> None:
    rows = [row for row in questions(12) if "color" in row["sample_id"]]
    store = write_store(tmp_path / "data", rows)

    def sees(request: Request) -> Sequence[tuple[str, float]]:
        (path,) = request.pictures
        assert isinstance(path, Path)
        return [(COLORS[int(path.stem) % 6], -0.1)]

    planned = experiment(store, tmp_path / "out", "ours", "other", controls=("shuffled_pictures", "untuned"))
    blind = PlantedAnswerer(always(("white", -0.1)))
    summary = run(planned, PlantedAnswerer(sees), PlantedAnswerer(sees), untuned=blind).summary
    assert summary["systems"]["ours"]["choices"]["first"]["vqa_accuracy"] == pytest.approx(1.0)
    assert summary["controls"]["shuffled_pictures"]["vqa_accuracy"] < 0.5
    assert summary["controls"]["untuned"]["vqa_accuracy"] == 0.0
    assert {row["b"]: row["verdict"] for row in summary["comparisons"] if row["a"] == "ours/first" and "controls" in row["b"]} == {
        "controls/shuffled_pictures": "a",
        "controls/untuned": "a",
    }


def test_weights_are_tuned_on_the_validation_split_and_only_there(tmp_path: Path) -> None:
    # On validation CLIP is always right, on the test split always wrong: the tuned weights must follow validation.
    rows = [sample(f"v{i}", i, "What color is the disc?", ["red"] * 10, split="validation") for i in range(6)]
    rows += [sample(f"t{i}", 10 + i, "What color is the disc?", ["gray"] * 10) for i in range(6)]
    store = write_store(tmp_path / "data", rows)
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True))
    answerer = PlantedAnswerer(always(("gray", -0.1), ("red", -0.5)))
    summary = run(planned, answerer, scorer=PlantedScorer("red")).summary
    rerank = summary["rerank"]
    assert (rerank["weights"], rerank["chosen_on"]) == ({"likelihood": 0.45, "clip": 0.55}, "validation")
    assert rerank["validation"]["tuned_held_out"] == rerank["validation"]["oracle"] == 1.0
    assert rerank["validation"]["configured"] == 0.0
    assert summary["systems"]["ours"]["choices"]["reranked"]["vqa_accuracy"] == 0.0
    assert len(lines(tmp_path / "out" / "predictions" / "validation" / "ours.jsonl")) == 6


def test_tuning_that_shows_no_difference_keeps_the_default(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2) + questions(2, "validation"))
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True, weights=RerankWeights(likelihood=0.6, clip=0.4)))
    answerer = PlantedAnswerer(always(("mauve", -0.1), ("pink", -0.2)))
    rerank = run(planned, answerer, scorer=PlantedScorer("pink")).summary["rerank"]
    assert (rerank["weights"], rerank["chosen_on"]) == ({"likelihood": 0.6, "clip": 0.4}, "default")


def never_loaded(system: object) -> PlantedAnswerer:
    pytest.fail(f"{system} was loaded")


@pytest.mark.parametrize(
    ("settings", "rerank", "message"),
    [
        ({"systems": ()}, None, "eval.systems: empty"),
        ({"systems": (CheckpointSystem(name="a", kind="checkpoint"),) * 2}, None, "a stands there more than once"),
        ({"systems": (QwenVlSystem(name="q", kind="qwen3_vl", path="q"),), "controls": ("untuned",)}, None, "eval.controls"),
        ({"bars": Bars(lead=0.1), "controls": ("untuned",)}, None, "eval.bars.lead: it is about the control shuffled_pictures"),
        ({"split": "validation"}, RerankConfig(tune=True), "eval.split must be another one"),
        ({"split": "train"}, None, "no samples in the split 'train'"),
        ({}, RerankConfig(weights=RerankWeights(likelihood=0.0, clip=0.0)), "both are zero"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, Any], rerank: RerankConfig | None, message: str
) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=rerank)
    planned = dataclasses.replace(planned, settings=dataclasses.replace(planned.settings, **settings))
    assert isinstance(planned.settings, EvalConfig)
    with pytest.raises(UsageError, match=message):
        evaluate(planned, never_loaded, never_loaded, [NamedScorer("planted clip", PlantedScorer())])


def test_tuning_without_a_scorer_is_an_error(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=RerankConfig(tune=True))
    with pytest.raises(UsageError, match=r"without rerank\.clip"):
        run(planned, PlantedAnswerer(by_the_book))


def test_the_shares_of_a_split_without_short_answers_are_not_made_up(tmp_path: Path) -> None:
    rows = [row for row in questions(3) if row["task"] == "caption"]
    summary = run(experiment(write_store(tmp_path / "data", rows), tmp_path / "out"), PlantedAnswerer(by_the_book)).summary
    assert summary["systems"]["ours"]["choices"] == {}
    assert summary["comparisons"] == []
    assert summary["systems"]["ours"]["captions"]["first"]["caption en"]["rouge_l"] == pytest.approx(1.0)


def test_decoding_that_lost_its_cuda_graphs_is_said_with_the_speed_also_when_the_run_is_continued(tmp_path: Path) -> None:
    class Slower(PlantedAnswerer):
        without_graphs: str | None = "a replay is off by 10.0% of the largest value"

    planned = experiment(write_store(tmp_path / "data", questions(6)), tmp_path / "out")
    plain = run(planned, PlantedAnswerer(by_the_book)).summary["systems"]["ours"]
    assert "without_cuda_graphs" not in plain
    other = dataclasses.replace(planned, out=tmp_path / "other")
    assert run(other, Slower(by_the_book)).summary["systems"]["ours"]["without_cuda_graphs"] == Slower.without_graphs
    # Nothing is asked again: what the file says of the speed was measured without graphs.
    again = run(other, PlantedAnswerer(by_the_book)).summary
    assert again["systems"]["ours"]["without_cuda_graphs"] == Slower.without_graphs
    assert any(f"ours: decoding went on without CUDA graphs, slower: {Slower.without_graphs}." in line for line in remarks(again))
