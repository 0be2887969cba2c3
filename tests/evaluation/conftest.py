"""An evaluation of fake systems, run once, for the tests of its report."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from answering.protocol import Request
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from tests.evaluation.fakes import COLORS, COLORS_ZH, evaluate, experiment, questions, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always

MARKUP = '<script>alert("http://example.com/x.js")</script>'


@dataclass(frozen=True)
class Written:
    """An evaluation and its report page."""

    planned: Experiment
    evaluation_result: EvaluationResult
    page: Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two systems, English and Chinese questions, markup in texts, a failed question, control runs, answers changed by reranking."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [*questions(8), sample("markup", 3, f"What is {MARKUP}?", [MARKUP] * 10)]
    store = write_store(folder / "data", rows)

    def careful(request: Request) -> list[tuple[str, float]]:
        if request.request_id == "markup":
            # The likelier candidate is right; CLIP, which prefers colors, changes it for the worse.
            return [(MARKUP, -0.1), ("red", -0.12), ("nothing", -3.0)]
        i = int(request.request_id.split("-")[1]) % 6
        if "color" in request.request_id:
            return [("gray", -0.10), (COLORS[i], -0.12), ("mauve", -3.0)]
        # The official normalisation keeps this full stop, so the two accuracies differ.
        return [(COLORS_ZH[i] + "。" * (i == 1), -0.1)] if "zh" in request.request_id else [("2", -0.1), ("1", -2.0)]

    answerers = {
        "careful": FakeAnswerer(careful, broken=frozenset({"test-1-count"})),
        "dull": FakeAnswerer(always(("gray", -0.1), ("red", -4.0))),
    }
    planned = experiment(store, folder / "out", "careful", "dull", controls=("shuffled_images", "untuned"), max_examples=24)
    untuned = FakeAnswerer(always(("mauve", -0.1)))
    evaluation_result = evaluate(
        planned, lambda system: answerers[system.name], lambda _: untuned, [NamedScorer("planted", FakeScorer(*COLORS))]
    )
    return Written(planned, evaluation_result, write_report(evaluation_result, planned))
