"""Evaluation with all reranking features: several scorers, background images, self-evaluation, tuning, confidence."""

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from answering.config import RerankConfig, RerankWeights
from answering.protocol import ImageInput, Request
from answering.rerank.fitted_reranker import load_fitted
from dataset.loading.sample_store import SampleStore
from errors import UsageError
from evaluation.questions import choose
from evaluation.report.chart_style import save, style
from evaluation.report.charts import confidence
from evaluation.report.report_notes import remarks
from evaluation.report.result_tables import all_tables
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import with_background_images
from tests.evaluation.fakes import COLORS, evaluate, experiment, questions, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always

FULL = RerankConfig(tune=True, self_evaluation=True, abstain_below=0.5, background_images=4)


def mostly_right(request: Request) -> Sequence[tuple[str, float]]:
    """The first color is wrong in two of three questions; counts are always 2."""
    i = int(request.request_id.split("-")[1])
    if "color" in request.request_id:
        right, wrong = (COLORS[i % 6], -0.2), ("mauve", -0.1 if i % 3 else -0.4)
        return sorted([right, wrong], key=lambda pair: -pair[1])
    return [("2", -0.1), ("1", -0.5)] if "count" in request.request_id else [("红色", -0.1), ("圆", -2.0)]


class Judging(FakeAnswerer):
    """Rates known colors as right; cannot evaluate Chinese answers."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        assert batch_size == 2
        return [
            None if request.language == "zh" else [0.9 if text in COLORS else 0.2 for text in group]
            for request, group in zip(requests, texts, strict=True)
        ]


class LinearScorer(FakeScorer):
    """Scores are linear in the single image feature, so priors can be computed from a mean feature."""

    def features(self, images: Sequence[ImageInput]) -> np.ndarray:
        return np.array([[float(str(image).endswith("0.png"))] for image in images], dtype=np.float32)

    def score_with_priors(
        self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]], background_means: Sequence[np.ndarray]
    ) -> list[tuple[list[float], list[float]]]:
        scores = self.score_batch(images, texts)
        return [(row, [10.0 * float(mean[0]) * len(row)] * len(row)) for row, mean in zip(scores, background_means, strict=True)]


def scorers() -> list[NamedScorer]:
    return [NamedScorer("planted clip", LinearScorer(*COLORS)), NamedScorer("other", FakeScorer("mauve"), "siglip", ("en",))]


def run(planned: Experiment, answerer: FakeAnswerer | None = None, used: Sequence[NamedScorer] | None = None) -> EvaluationResult:
    answerer = answerer or Judging(mostly_right)
    return evaluate(planned, lambda _: answerer, lambda _: answerer, scorers() if used is None else used)


def lines(path: Path) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Path]:
    folder = tmp_path_factory.mktemp("full")
    store = write_store(folder / "data", questions(12) + questions(18, "validation"))
    return run(experiment(store, folder / "out", rerank=FULL)), folder / "out"


def test_all_choices_appear_in_display_order(full: tuple[EvaluationResult, Path]) -> None:
    choices = list(full[0].record()["systems"]["ours"]["choices"])
    assert choices == [
        *("first", "random", "majority", "likelihood", "clip", "clip_corrected", "siglip"),
        *("self", "reranked", "learned", "abstaining", "oracle"),
    ]


def test_candidates_have_every_score_and_its_prior(full: tuple[EvaluationResult, Path]) -> None:
    rows = lines(full[1] / "predictions" / "ours.jsonl")
    assert set(rows["test-1-color"]["candidates"][0]) >= {"clip", "clip_prior", "siglip", "self", "fused", "learned"}
    assert "siglip_prior" not in rows["test-1-color"]["candidates"][0]
    # The English-only scorer and the answerer, which cannot evaluate Chinese, give no scores to a Chinese question.
    assert not {"siglip", "self"} & set(rows["test-1-zh"]["candidates"][0])
    assert rows["test-1-zh"]["choices"]["siglip"] == rows["test-1-zh"]["choices"]["self"] == "红色"
    assert 0.0 < rows["test-1-color"]["confidence"] < 1.0
    assert "confidence" not in rows["test-1-caption"]


def test_the_summary_records_how_weights_and_models_were_chosen(full: tuple[EvaluationResult, Path]) -> None:
    rerank = full[0].record()["rerank"]
    assert rerank["scorers"] == {"clip": "planted clip", "siglip": "other"}
    assert rerank["chosen_on"] in ("default", "validation")
    assert rerank["background_images"] == 4
    assert set(rerank["weights"]) == {"likelihood", "clip", "self_evaluation"}
    assert rerank["validation"].keys() >= {
        "questions",
        "first",
        "configured",
        "tuned_held_out",
        "oracle",
        "skipped_question_types",
        "systems",
    }
    assert set(rerank["learned"]["ours"]) >= {"likelihood", "clip", "clip_corrected", "siglip", "self", "bias"}
    confidence_figures = full[0].record()["systems"]["ours"]["confidence"]
    assert confidence_figures["fitted_on"] == "validation"
    assert confidence_figures.keys() >= {"ece", "bins", "brier", "aurc", "risk_coverage", "abstaining"}


def test_the_fitted_rerank_of_a_system_is_saved(full: tuple[EvaluationResult, Path]) -> None:
    fitted = load_fitted(full[1] / "plans" / "ours.json")
    assert fitted.plan.learned is not None
    assert fitted.plan.confidence is not None
    assert fitted.scorers == {"clip": "planted clip, sentence", "siglip": "other, sentence"}
    assert list(fitted.background_means) == ["clip"]


def test_references_of_the_test_split_do_not_affect_the_choices_of_a_tuned_run(tmp_path: Path) -> None:
    rows = [*questions(8), *questions(12, "validation")]
    answers = [row["answers"] for row in rows if row["split"] == "test"]
    random.Random(1).shuffle(answers)
    changed = [{**row, "answers": answers.pop()} if row["split"] == "test" else row for row in rows]
    written = []
    for name, samples in (("as they are", rows), ("shuffled", changed)):
        run(experiment(write_store(tmp_path / "data", samples), tmp_path / name, rerank=FULL))
        files = ("predictions/ours.jsonl", "predictions/validation/ours.jsonl", "plans/ours.json")
        written.append([(tmp_path / name / file).read_bytes() for file in files])
    assert written[0] == written[1]


def test_references_of_the_validation_split_affect_the_fitted_rerank(tmp_path: Path) -> None:
    """Counterpart of the test above, which would also pass if nothing were fitted at all."""
    rows = [*questions(8), *questions(12, "validation")]
    changed = [{**row, "answers": ["mauve"] * 10} if row["split"] == "validation" else row for row in rows]
    plans = []
    for name, samples in (("as they are", rows), ("changed", changed)):
        run(experiment(write_store(tmp_path / "data", samples), tmp_path / name, rerank=FULL))
        plans.append((tmp_path / name / "plans/ours.json").read_bytes())
    assert plans[0] != plans[1]


def test_repeating_a_finished_tuned_run_answers_and_scores_nothing(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(4) + questions(6, "validation")), tmp_path / "out", rerank=FULL)
    first = run(planned).record()
    again, used = Judging(mostly_right), scorers()
    assert run(planned, again, used).record() == first
    assert again.asked == []
    assert all(isinstance(item.scorer, FakeScorer) and item.scorer.scored == 0 for item in used)


def test_another_statement_form_or_other_background_images_are_scored_again(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(4)), tmp_path / "out", rerank=RerankConfig(background_images=4))
    run(planned)
    for rerank, statement_form in ((RerankConfig(background_images=4), "joined"), (RerankConfig(background_images=3), "joined")):
        used = [dataclasses.replace(item, statement_form=statement_form) for item in scorers()]  # type: ignore[arg-type]
        run(dataclasses.replace(planned, rerank=rerank), used=used)
        assert isinstance(used[0].scorer, FakeScorer)
        assert used[0].scorer.scored == 16


def test_an_unreadable_image_is_not_a_background_image(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(5))
    (scorer,) = with_background_images(scorers()[:1], store, 3)
    assert scorer.background_images is not None
    first, *others = scorer.background_images.keys
    # The keys equal those of a question's images, so that these can be excluded from its prior.
    assert set(scorer.background_images.keys) < {key for question in choose(store, "test", None) for key in question.images}
    (tmp_path / "data" / f"{int(first, 16)}.png").write_bytes(b"no image")
    (again,) = with_background_images(scorers()[:1], store, 3)
    assert again.background_images is not None
    assert list(again.background_images.keys[:2]) == others
    assert len(set(again.background_images.keys)) == 3
    assert first not in again.background_images.keys


def test_captions_have_a_clip_score_in_the_languages_of_a_scorer(tmp_path: Path) -> None:
    rows = [row | {"language": "zh"} if row["sample_id"] == "test-0-caption" else row for row in questions(2) if row["task"] == "caption"]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out")
    english = NamedScorer("english", FakeScorer(*COLORS), "english", ("en",))
    metrics = run(planned, FakeAnswerer(always(("a blue disc", -0.1))), [english]).record()["systems"]["ours"]["captions"]["first"]
    assert metrics["caption en"]["clip_score"] == pytest.approx(0.75)
    assert "clip_score" not in metrics["caption zh"]


def test_an_answerer_without_self_evaluation_is_reranked_without_it(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(4)), tmp_path / "out", rerank=RerankConfig(self_evaluation=True))
    choices = run(planned, FakeAnswerer(mostly_right)).record()["systems"]["ours"]["choices"]
    assert "self" not in choices
    assert "reranked" in choices


def test_self_evaluation_alone_can_rerank(tmp_path: Path) -> None:
    rerank = RerankConfig(self_evaluation=True, weights=RerankWeights(self_evaluation=5.0))
    planned = experiment(write_store(tmp_path / "data", questions(6)), tmp_path / "out", rerank=rerank)
    choices = run(planned, used=[]).record()["systems"]["ours"]["choices"]
    assert choices["self"]["vqa_accuracy"] == choices["reranked"]["vqa_accuracy"] > choices["first"]["vqa_accuracy"]


def test_tune_limit_bounds_the_validation_questions(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2) + questions(8, "validation"))
    run(experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True, tune_limit=5)))
    assert len(lines(tmp_path / "out/predictions/validation/ours.jsonl")) == 5


@pytest.mark.parametrize(
    ("rerank", "message"),
    [
        (RerankConfig(abstain_below=0.5), "rerank.abstain_below: the confidence is fitted on the validation split"),
        (
            RerankConfig(clip_score_form="prior_corrected", background_images=0),
            "rerank.clip_score_form: prior_corrected needs background images",
        ),
        (RerankConfig(tune=True), "rerank.tune: the validation split has no questions with short answers"),
    ],
)
def test_conflicting_settings_are_errors_before_anything_is_loaded(tmp_path: Path, rerank: RerankConfig, message: str) -> None:
    rows = [sample("a", 0, "Is it?", ["yes"]), sample("b", 1, "Describe.", ["x"], split="validation", task="caption")]
    planned = experiment(write_store(tmp_path / "data", rows), tmp_path / "out", rerank=rerank)

    def fail_to_load(system: object) -> FakeAnswerer:
        pytest.fail(f"{system} was loaded")

    with pytest.raises(UsageError, match=message):
        evaluate(planned, fail_to_load, fail_to_load, scorers())


def test_an_answerer_without_right_candidates_scores_zero_whatever_is_fitted(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(4) + questions(8, "validation"))
    always_wrong = Judging(always(("pink", -0.5), ("", -0.7), ("mauve", -1.0)))
    choices = run(experiment(store, tmp_path / "out", rerank=FULL), always_wrong).record()["systems"]["ours"]["choices"]
    assert {measures["vqa_accuracy"] for measures in choices.values()} == {0.0}


def test_the_report_starts_with_what_can_change_and_explains_the_rerank(full: tuple[EvaluationResult, Path]) -> None:
    evaluation_result, _ = full
    tables = all_tables(evaluation_result.summary)
    assert "choosing another candidate can affect" in next(iter(tables))
    assert ("ours/learned", "ours/first") in {row[:2] for row in tables["Comparisons"][1]}
    page = write_report(evaluation_result, experiment(SampleStore(full[1].parent / "data"), full[1], rerank=FULL)).read_text(
        encoding="utf-8"
    )
    # Of color, Chinese and counting questions, the counting questions are skipped.
    assert 0 < page.index("Reranking skips 33.3 %") < page.index('class="bar"') < page.index("<table")
    assert re.search(r"confidence 0\.\d\d</span>", page)
    assert len(tables["Calibration of the confidence"][1]) == 1
    (learned,) = [row for row in tables["Reranking on the validation split"][1] if row[0].startswith("ours: learned")]
    assert learned[1] == "54"
    notes = " ".join(remarks(evaluation_result.summary))
    assert "Reranking skips yes/no and counting questions. The validation split shows no gain for them." in notes
    assert "scorers clip planted clip, siglip other" in notes
    assert "of the questions, abstaining below confidence 0.5" in notes
    assert "Confidence: fitted and calibrated per system on the validation split only." in notes
    assert ("chosen on the validation split" in notes) is (evaluation_result.record()["rerank"]["chosen_on"] == "validation")


def test_the_confidence_chart_is_not_empty(full: tuple[EvaluationResult, Path], tmp_path: Path) -> None:
    with style():
        path = save(confidence(full[0].summary), tmp_path / "confidence.png")
    with Image.open(path) as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(2**24) or []) > 10
