"""Runs are done once, go on after a kill, and are not mixed with those of other settings or data; one that fails leaves the others be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation.ablation_data import KINDS, judged_questions, prepare_data
from benchmarks.ablation.ablation_report import write_report
from benchmarks.ablation.ablation_runs import RUNS_FOLDER, Laboratory, Selection, carry_out, select, stored_results
from benchmarks.ablation.config import all_variants, check_variants, load
from benchmarks.ablation.run_records import read_record, record_path
from benchmarks.ablation.variant_training import Job, RunFailedError, train_and_judge
from errors import TesseraError, UsageError
from tests.benchmarks.ablation.conftest import PlannedRuns

ALL = Selection(("base", "pool2"), (0, 1))
GOOD = {"base": 0.4, "pool2": 0.9}


def test_a_variant_is_trained_asked_and_its_result_read_back(laboratory: Laboratory) -> None:
    data = prepare_data(laboratory.ablation.data, laboratory.work)
    record_folder, job = laboratory.out / RUNS_FOLDER, Job(laboratory.variants["pool2"], 1, data, laboratory.work / "runs/pool2-seed1")
    stored = carry_out(laboratory, Selection(("pool2",), (1,)), lambda given: train_and_judge(given))
    measured = stored.valid["pool2"][1].figures
    assert measured is not None and read_record(record_path(record_folder, "pool2", 1)).figures == measured
    asked = judged_questions(data.folder)
    assert measured.answers.kinds == asked.kinds and set(asked.kinds) == set(KINDS)
    assert len(measured.answers.per_image) == 8 + 7 + 8
    assert measured.tokens_per_image == 9 and measured.samples_per_second > 0 and measured.peak_memory_gib > 0.1
    assert not job.folder.exists()  # its checkpoints are not kept


def test_the_letters_of_the_questions_are_their_kinds_and_images_stay_together(laboratory: Laboratory) -> None:
    asked = judged_questions(prepare_data(laboratory.ablation.data, laboratory.work).folder)
    of_kind = {KINDS[letter]: [q for q, kind in zip(asked.questions, asked.kinds, strict=True) if kind == letter] for letter in KINDS}
    assert {q.source for q in of_kind["unseen"]} == {"vqa_unseen"}
    assert {q.category for kind in ("seen, counting", "larger scenes, counting") for q in of_kind[kind]} == {"counting"}
    assert {(q.source, q.category) for q in of_kind["larger scenes, reading"]} == {("vqa_large_test", "reading")}
    assert {q.category for q in of_kind["larger scenes, small objects"]} <= {"attribute", "yes/no"}
    images = [question.image_ids for question in asked.questions]
    assert len(asked.per_image) == len(set(images)) and sum(asked.per_image) == len(images)


def test_seeds_come_one_after_the_other_and_nothing_is_done_twice(laboratory: Laboratory, capsys: pytest.CaptureFixture[str]) -> None:
    runs = PlannedRuns(GOOD)
    carry_out(laboratory, ALL, runs)
    assert runs.done == ["base-0", "pool2-0", "base-1", "pool2-1"]
    assert "run 3/4, base with seed 1: accuracy" in (printed := capsys.readouterr().out) and " left" in printed
    carry_out(laboratory, ALL, runs)
    assert len(runs.done) == 4
    assert "0 runs to do, 4 done before" in capsys.readouterr().out


def test_a_killed_ablation_goes_on_with_the_run_that_it_was_at(laboratory: Laboratory) -> None:
    killed = PlannedRuns(GOOD, {"base-1": KeyboardInterrupt()})  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        carry_out(laboratory, ALL, killed)
    assert sorted(path.name for path in (laboratory.out / RUNS_FOLDER).iterdir()) == ["base-seed0.json", "pool2-seed0.json"]
    rest = PlannedRuns(GOOD)
    carry_out(laboratory, ALL, rest)
    assert rest.done == ["base-1", "pool2-1"]


def test_a_run_that_fails_is_a_row_with_the_reason_and_is_tried_again_only_when_asked(laboratory: Laboratory) -> None:
    failing = PlannedRuns(GOOD, {"pool2-0": RunFailedError("step 7: the loss is nan"), "pool2-1": RunFailedError("killed by signal 9")})
    stored = carry_out(laboratory, ALL, failing)
    text = write_report(laboratory, stored, Path("ablation.yaml"))
    assert "| pool2 | failed |" in text and "- pool2, seed 0: step 7: the loss is nan" in text and "killed by signal 9" in text
    again = PlannedRuns(GOOD)
    carry_out(laboratory, ALL, again)
    assert again.done == []
    carry_out(laboratory, select(laboratory, [], [], retry_failed=True), again)
    assert again.done == ["pool2-0", "pool2-1"]


def test_a_changed_variant_is_run_again_and_its_earlier_results_are_named_and_not_used(
    laboratory: Laboratory, write_ablation: Callable[..., Path]
) -> None:
    carry_out(laboratory, ALL, PlannedRuns(GOOD))
    variants = {"pool2": {"description": "even fewer", "overrides": {"model.connector": {"kind": "mlp_pool", "pool": 3}}}}
    changed = Laboratory.of(load(write_ablation(variants=variants)), laboratory.out, laboratory.work)
    stored = stored_results(changed, None)
    assert set(stored.valid["base"]) == {0, 1} and not stored.valid["pool2"]
    assert stored.left_out == [f"pool2-seed{seed}.json: made with other settings of pool2" for seed in (0, 1)]
    assert "pool2-seed0.json: made with other settings" in write_report(changed, stored, Path("ablation.yaml"))
    runs = PlannedRuns(GOOD)
    assert carry_out(changed, ALL, runs).left_out == []
    assert runs.done == ["pool2-0", "pool2-1"]
    gone = Laboratory.of(load(write_ablation(variants={})), laboratory.out, laboratory.work)
    assert stored_results(gone, None).left_out == [f"pool2-seed{seed}.json: the ablation has no variant pool2 now" for seed in (0, 1)]


def test_a_new_description_or_logging_interval_leaves_results_valid_and_other_data_do_not(
    laboratory: Laboratory, write_ablation: Callable[..., Path]
) -> None:
    def settings(**keys: Any) -> dict[str, str]:
        return dict(Laboratory.of(load(write_ablation(**keys)), laboratory.out, laboratory.work).settings)

    variants = {
        "pool2": {
            "description": "in other words",
            "overrides": {"model.connector": {"kind": "mlp_pool", "pool": 2}, "train.logging_steps": 5},
        }
    }
    assert settings(variants=variants) == laboratory.settings
    changed = settings(data={**vars(laboratory.ablation.data), "test": 9})
    assert not set(changed.values()) & set(laboratory.settings.values())
    shared = settings(overrides={"train.learning_rate": 1e-3})
    assert not set(shared.values()) & set(laboratory.settings.values())
    stored = carry_out(laboratory, ALL, PlannedRuns(GOOD))
    assert stored_results(laboratory, "of other data").left_out == [
        f"{name}-seed{seed}.json: made with other data" for name in ("base", "pool2") for seed in (0, 1)
    ]
    assert stored_results(laboratory, None) == stored


def test_data_are_the_same_wherever_they_are_made(laboratory: Laboratory, tmp_path: Path) -> None:
    here = prepare_data(laboratory.ablation.data, laboratory.work)
    there = prepare_data(laboratory.ablation.data, tmp_path / "elsewhere")
    assert here.digest == there.digest and here.folder != there.folder


def test_chosen_variants_are_compared_with_the_base_and_unknown_ones_are_refused(laboratory: Laboratory) -> None:
    assert select(laboratory, ["pool2"], [5, 5, 6], False) == Selection({"base", "pool2"}, (5, 6))
    assert select(laboratory, [], [], False) == Selection({"base", "pool2"}, (0, 1))
    with pytest.raises(UsageError, match="--variants pool3: there is no such variant; expected some of base, pool2"):
        select(laboratory, ["pool3"], [], False)


def variant(name: str = "v", **overrides: Any) -> dict[str, Any]:
    """The key `variants` with one variant."""
    return {"variants": {name: {"description": "d", "overrides": {key.replace("__", "."): value for key, value in overrides.items()}}}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            variant(model__conector__pool=2),
            "variants.v.overrides: small.yaml: model.conector",
        ),
        (
            variant(model__connector__pool=0),
            "model.connector.pool: input should be greater",
        ),
        (
            variant(model__vision="nowhere/at/all"),
            "v.overrides: model.vision: nowhere/at/all",
        ),
        (variant(model__vision_lora={"r": 2}), "model.vision_lora: no stage of train.stages trains vision"),
        (variant(model__lora=None), "lora needs model.lora, which is null"),
        ({"overrides": {"train.sed": 3}}, "ablation.yaml: overrides: small.yaml: train.sed: unknown key; the nearest is train.seed"),
        ({"variants": {"v": {"description": "d", "overides": {}}}}, "variants.v.overides: unknown key"),
        (variant(), "variants.v.overrides"),
        (
            variant("base", train__seed=2),
            "variants.base: this is the name of the base itself",
        ),
        ({"seeds": [1, 1]}, "seeds: 1, 1; expected different ones"),
        ({"seeds": []}, "seeds: "),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: there is no such file"),
        ({"data": {"tests": 3}}, "data.tests: unknown key; the nearest is data.test"),
    ],
)
def test_what_cannot_be_run_is_found_before_the_first_run(write_ablation: Callable[..., Path], keys: dict[str, Any], message: str) -> None:
    path = write_ablation(**keys)
    with pytest.raises(UsageError) as refused:
        check_variants(path, all_variants(load(path)))
    assert message in str(refused.value)


def test_a_file_that_is_no_result_is_named(laboratory: Laboratory) -> None:
    folder = laboratory.out / RUNS_FOLDER
    folder.mkdir(parents=True)
    (folder / "base-seed0.json").write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(TesseraError, match=r"base-seed0\.json: not the result of a run"):
        stored_results(laboratory, None)
    (folder / "base-seed0.json").write_text('{"schema_version": 9}', encoding="utf-8")
    with pytest.raises(TesseraError, match="schema_version 9, expected 1"):
        stored_results(laboratory, None)
