"""A planted evaluation, run once, for all that is drawn and written from it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from answering.protocol import Request
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import EvaluationResult, evaluate
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from tests.evaluation.planted import COLORS, COLORS_ZH, PlantedAnswerer, PlantedScorer, always, experiment, questions, sample, write_store

MARKUP = '<script>alert("http://example.com/x.js")</script>'


@dataclass(frozen=True)
class Written:
    """An evaluation and the page made of it."""

    planned: Experiment
    evaluation_result: EvaluationResult
    page: Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two systems, English and Chinese, markup in every text of a user, a failed question, controls, a rerank that changes."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [*questions(8), sample("markup", 3, f"What is {MARKUP}?", [MARKUP] * 10)]
    store = write_store(folder / "data", rows)

    def careful(request: Request) -> list[tuple[str, float]]:
        if request.request_id == "markup":
            # The likelier one is right: CLIP, which likes colors, changes it for the worse.
            return [(MARKUP, -0.1), ("red", -0.12), ("nothing", -3.0)]
        i = int(request.request_id.split("-")[1]) % 6
        if "color" in request.request_id:
            return [("gray", -0.10), (COLORS[i], -0.12), ("mauve", -3.0)]
        # With a full stop that official normalisation leaves: the two accuracies differ.
        return [(COLORS_ZH[i] + "。" * (i == 1), -0.1)] if "zh" in request.request_id else [("2", -0.1), ("1", -2.0)]

    answerers = {
        "careful": PlantedAnswerer(careful, broken=frozenset({"test-1-count"})),
        "dull": PlantedAnswerer(always(("gray", -0.1), ("red", -4.0))),
    }
    planned = experiment(store, folder / "out", "careful", "dull", controls=("shuffled_images", "untuned"), max_examples=24)
    untuned = PlantedAnswerer(always(("mauve", -0.1)))
    evaluation_result = evaluate(
        planned, lambda system: answerers[system.name], lambda _: untuned, [NamedScorer("planted", PlantedScorer(*COLORS))]
    )
    return Written(planned, evaluation_result, write_report(evaluation_result, planned))
