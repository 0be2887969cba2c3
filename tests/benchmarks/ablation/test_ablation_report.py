"""The report says what is shown over seeds, and is right with one seed, with missing runs and without any."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablation.ablation_data import CATEGORIES
from benchmarks.ablation.ablation_report import CHART_FILE, base_differences, variant_results, write_report
from benchmarks.ablation.ablation_runs import RUNS_FOLDER, Laboratory, stored_results
from benchmarks.ablation.config import load
from benchmarks.ablation.run_records import Answers, RunRecord, mean_score, read_record
from evaluation.statistics import holm
from tests.benchmarks.ablation.conftest import figures

IMAGES = 120
KINDS, PER_IMAGE = "snuroc" * (IMAGES // 2), [3] * IMAGES


def answers(seed: int, right: float, own: dict[str, float] | None = None) -> Answers:
    """Answers of which each is right with a probability, for some kinds another one."""
    rng = np.random.default_rng(seed)
    scores = [float(rng.random() < (own or {}).get(kind, right)) for kind in KINDS]
    return Answers.of(KINDS, PER_IMAGE, scores)


@pytest.fixture
def two_variants(write_ablation: Callable[..., Path]) -> Laboratory:
    variants = {name: {"description": f"{name} in words", "overrides": {"model.lora.r": r}} for name, r in (("reads", 2), ("same", 3))}
    return Laboratory.of(load(write_ablation(seeds=[0, 1, 2], variants=variants)), Path("out"), Path("work"))


def write(laboratory: Laboratory, name: str, seeds: list[int], own: dict[str, float] | None = None, error: str | None = None) -> None:
    for seed in seeds:
        measured = None if error else figures(answers(100 * len(name) + seed, 0.5, own))
        overrides = laboratory.variants[name].own
        RunRecord(name, seed, laboratory.settings[name], "the data", overrides, 120.0, measured, error).write(laboratory.out / RUNS_FOLDER)


def report(laboratory: Laboratory) -> str:
    return write_report(laboratory, stored_results(laboratory, None), Path("ablation.yaml"))


def row(text: str, name: str, table: int = 0) -> list[str]:
    """Cells of a variant's row in one of the tables."""
    return [cell.strip() for cell in [line for line in text.splitlines() if line.startswith(f"| {name} |")][table].strip("|").split("|")]


def test_what_helps_over_three_seeds_is_shown_and_what_does_not_is_not(two_variants: Laboratory) -> None:
    write(two_variants, "base", [0, 1, 2])
    write(two_variants, "reads", [0, 1, 2], {"r": 0.98})
    write(two_variants, "same", [0, 1, 2])
    text = report(two_variants)
    assert "- **reads** is better than the base by " in text and " points in reading." in text.split("## Accuracy and cost")[0]
    assert "- Not shown to differ from the base in anything: same." in text
    reading = 2 + list(CATEGORIES).index("reading")
    assert float(row(text, "reads")[reading].split(" ± ")[0]) > 90 and row(text, "reads")[1] == "0, 1, 2"
    assert row(text, "reads", 1)[reading - 1].endswith("**better**") and row(text, "reads", 1)[reading - 2].endswith(" not shown")
    assert (two_variants.out / CHART_FILE).stat().st_size > 10_000
    assert (two_variants.out / "report.md").read_text(encoding="utf-8") == text


def test_p_values_are_corrected_over_the_variants_of_a_column(two_variants: Laboratory) -> None:
    write(two_variants, "base", [0, 1])
    write(two_variants, "reads", [0, 1], {"r": 0.7})
    write(two_variants, "same", [0, 1, 2], {"r": 0.4})
    differences = [d for d in base_differences(variant_results(stored_results(two_variants, None))) if d.category == "reading"]
    tested = [d.tested for d in differences if d.tested is not None]
    assert [d.p_holm for d in tested] == holm([d.unadjusted.p_value for d in differences])
    assert tested[0].p_holm >= tested[0].p_value


def test_one_seed_has_figures_and_no_verdict(two_variants: Laboratory) -> None:
    write(two_variants, "base", [0])
    write(two_variants, "reads", [0], {"r": 0.98})
    text = report(two_variants)
    assert row(text, "reads", 1)[4].endswith(") one seed") and "better" not in text.split("## How it was judged")[0]
    assert "Without a verdict, because there is one seed of them or of the base: reads." in text
    assert "±" not in row(text, "reads")[2]
    assert row(text, "same")[1:3] == ["not run yet", "-"]
    assert "- same: seed 0, 1, 2" in text and "- reads: seed 1, 2" in text


def test_a_variant_that_failed_with_every_seed_or_with_one_has_the_reason(two_variants: Laboratory) -> None:
    write(two_variants, "base", [0, 1, 2])
    write(two_variants, "same", [0, 1])
    write(two_variants, "same", [2], error="training: out of memory")
    write(two_variants, "reads", [0], error="the loss is nan")
    text = report(two_variants)
    assert row(text, "same")[1] == "0, 1 (1 failed)" and row(text, "reads")[1] == "failed"
    assert "- same, seed 2: training: out of memory" in text and "- reads, seed 0: the loss is nan" in text
    assert "- reads: seed 1, 2" in text and "- same: seed" not in text


def test_without_results_and_without_the_base_the_report_says_so(two_variants: Laboratory) -> None:
    assert "The base has no finished run yet, so nothing is compared." in report(two_variants)
    write(two_variants, "reads", [0, 1])
    text = report(two_variants)
    assert row(text, "reads")[1] == "0, 1" and "## Difference to the base" not in text
    assert not (two_variants.out / CHART_FILE).exists()


def test_a_result_is_small_and_gives_back_every_score(two_variants: Laboratory) -> None:
    kinds, per_image = "snuroc" * 600, [4] * 900
    scores = np.random.default_rng(0).choice([0, 0.3, 0.6, 0.9, 1.0], size=3600).tolist()
    measured = figures(Answers.of(kinds, per_image, scores))
    written = RunRecord("base", 0, "s", "d", {}, 1.0, measured).write(two_variants.out)
    assert written.stat().st_size < 20_000
    read = read_record(written)
    assert read.figures is not None and read.figures.answers.scores.tolist() == pytest.approx(scores)
    assert read.figures.answers.cluster_ids.tolist() == np.repeat(np.arange(900), 4).tolist()
    stated = json.loads(written.read_text(encoding="utf-8"))["figures"]["categories"]
    assert stated["unseen"] == {"questions": 600, "vqa_accuracy": pytest.approx(np.mean(scores[2::6]), abs=1e-4)}
    assert stated["seen"]["questions"] == 1200 and mean_score(read.figures.answers, "counting") == stated["counting"]["vqa_accuracy"]
