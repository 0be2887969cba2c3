"""What is reported is what is served: both choose by answering.rerank.choose_answer."""

from collections.abc import Sequence
from pathlib import Path

from answering.config import RerankConfig
from answering.protocol import Request
from answering.reply import Reply, Reranker, reply
from answering.rerank.fitted_reranker import load_fitted
from answering.rerank.image_text_scores import ImageTextScorer
from evaluation.prediction_files import read_predictions
from evaluation.questions import choose
from tests.evaluation.fakes import COLORS, experiment, questions, run, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer

BELOW = 0.6
BROKEN = frozenset({"test-3-color", "test-40-count"})


def uncertain(request: Request) -> Sequence[tuple[str, float]]:
    """Candidates of which now the first, now the second is right, with probabilities that depend on the question."""
    number = sum(map(ord, request.request_id))
    right = COLORS[number % 6] if "color" in request.request_id else "1"
    ordered = (right, "gray") if number % 3 else ("gray", right)
    return [(ordered[0], -0.1 - number % 7 / 10), (ordered[1], -0.5 - number % 5 / 10), ("mauve", -2.0)]


def test_reported_and_served_answers_are_equal_on_200_questions(tmp_path: Path) -> None:
    without_image = [
        sample(f"test-{i}-text-color", (), f"What color is number {i}?", [COLORS[i % 6]] * 10, image_ids=[]) for i in range(40)
    ]
    store = write_store(tmp_path / "data", [*questions(60), *without_image, *questions(40, "validation")])
    rerank = RerankConfig(tune=True, abstain_below=BELOW)
    planned = experiment(store, tmp_path / "out", rerank=rerank)
    scorer = FakeScorer("red", "blue", "one", "红色")
    run(planned, FakeAnswerer(uncertain, BROKEN), scorer=scorer)
    reported = {prediction.sample_id: prediction for prediction in read_predictions(tmp_path / "out/predictions/ours.jsonl")}

    answerer = FakeAnswerer(uncertain, BROKEN)
    fitted = load_fitted(tmp_path / "out/plans/ours.json")
    scorers = (ImageTextScorer("clip", scorer, background_images=fitted.background_images("clip")),)
    asked = [question.request for question in choose(store, "test", None) if question.short]
    assert len(asked) >= 200
    served: list[Reply] = reply(answerer, Reranker(scorers, fitted.plan, abstain_below=BELOW), asked, planned.decoding)
    kinds = {"not sure": 0, "reranked": 0, "failed": 0}
    for request, own in zip(asked, served, strict=True):
        expected = reported[request.request_id]
        assert expected.choices is not None
        assert own.answer.error == expected.error
        if own.answer.error is None:
            assert own.chosen == expected.choices["abstaining"], request.request_id
            assert own.choices.get("reranked", own.choices["first"]) == expected.choices["reranked"]
        assert (own.confidence, own.fused, own.unlike) == (expected.confidence, expected.fused, expected.unlike)
        kinds["failed"] += own.answer.error is not None
        kinds["not sure"] += own.chosen in ("not sure", "不确定")
        kinds["reranked"] += own.choices.get("reranked", own.choices["first"]) != own.choices["first"]
    assert all(kinds.values()), f"all kinds must occur: {kinds}"
