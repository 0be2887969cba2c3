"""Score fusion and selection agree with cases computed by hand; a chosen answer is always one of the candidates."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from answering.config import RerankWeights
from answering.protocol import Answer, Candidate, Decoding, Description, Request
from answering.reply import judge, reply
from answering.rerank.candidate_scores import Signal, Signals
from answering.rerank.choose_answer import RerankPlan, chosen_text, rerank, select_candidates
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.image_text_scores import ImageTextScorer
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import components, features, fuse, min_max, softmax_min_max
from answering.rerank.self_evaluation import SelfEvaluator
from answering.rerank.statements import statement
from answering.systems.family_answerer import FamilyAnswerer
from errors import UsageError
from tests.answering.conftest import make_request
from visual.clip_scorer import ClipScorer

DEFAULT = RerankWeights()


def candidate(text: str, mean: float | None = -1.0, count: int = 1, log_prob: float | None = None) -> Candidate:
    return Candidate(text, log_prob if log_prob is not None else mean, mean, text, count)


def clip_signals(*scores: float, prior: Sequence[float] | None = None) -> Signals:
    return {"clip": Signal(scores, None if prior is None else tuple(prior))}


def chosen_texts(
    candidates: Sequence[Candidate], signals: Signals | None, plan: RerankPlan | None = None, kind: Any = None
) -> dict[str, str]:
    """The chosen text of each selection method."""
    return {
        name: chosen_text(candidates, index) for name, index in select_candidates(candidates, signals, plan or RerankPlan(), kind).items()
    }


def test_log_probabilities_become_a_min_max_normalised_softmax() -> None:
    values = np.log([0.5, 0.3, 0.2])
    assert softmax_min_max(values).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert softmax_min_max(values + 5).tolist() == pytest.approx([1.0, 1 / 3, 0.0])


def test_equal_scores_are_all_normalised_to_1() -> None:
    assert softmax_min_max(np.array([2.0, 2.0, 2.0])).tolist() == [1.0, 1.0, 1.0]
    assert softmax_min_max(np.array([7.0])).tolist() == [1.0]


def test_questions_with_different_numbers_of_candidates_are_normalised_together() -> None:
    ragged = np.array([[math.log(0.5), math.log(0.3), math.log(0.2)], [1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    expected = [[1.0, 1 / 3, 0.0], [0.0, 1.0, np.nan], [1.0, np.nan, np.nan]]
    assert softmax_min_max(ragged) == pytest.approx(np.array(expected), nan_ok=True)


def order(fused: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted(range(len(fused)), key=lambda i: -fused[i]))


def test_scores_are_fused_by_weight() -> None:
    candidates = [candidate("a", math.log(0.5)), candidate("b", math.log(0.3)), candidate("c", math.log(0.2))]
    ranking = rerank(candidates, clip_signals(math.log(1), math.log(9), math.log(2)), DEFAULT)
    # Likelihood 1, 1/3, 0; CLIP 0, 1, 1/8.
    assert ranking == pytest.approx((0.8, 0.8 / 3 + 0.2, 0.2 / 8))
    assert order(ranking) == (0, 1, 2)
    assert order(rerank(candidates, clip_signals(0.0, 9.0, 0.0), RerankWeights(likelihood=0.1, clip=0.9))) == (1, 0, 2)


def test_only_the_ratios_of_the_weights_matter() -> None:
    candidates = [candidate("a", -1.0), candidate("b", -1.5), candidate("c", -3.0)]
    one = rerank(candidates, clip_signals(1.0, 3.0, 2.0), RerankWeights(likelihood=0.8, clip=0.2))
    other = rerank(candidates, clip_signals(1.0, 3.0, 2.0), RerankWeights(likelihood=4.0, clip=1.0))
    assert one == pytest.approx(other)
    with pytest.raises(UsageError, match=r"rerank\.weights"):
        rerank(candidates, clip_signals(1.0, 3.0, 2.0), RerankWeights(likelihood=0.0, clip=0.0))


def test_fusing_many_questions_at_once_equals_reranking_each() -> None:
    means, clip = np.array([[-1.0, -1.5, -3.0], [-2.0, -1.0, np.nan]]), np.array([[1.0, 3.0, 2.0], [5.0, 1.0, np.nan]])
    fused = fuse({"likelihood": softmax_min_max(means), "clip": softmax_min_max(clip)}, DEFAULT)
    for row in range(2):
        known = ~np.isnan(means[row])
        candidates = [candidate(str(i), float(mean)) for i, mean in enumerate(means[row][known])]
        assert tuple(fused[row][known]) == pytest.approx(rerank(candidates, clip_signals(*clip[row][known].tolist()), DEFAULT))


def test_ties_keep_the_earlier_candidate_first() -> None:
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    many = [candidate(str(i)) for i in range(40)]
    for tied, scores, best in ((candidates, (1.0, 1.0, 1.0), 0), (candidates, (0.0, 1.0, 1.0), 1), (many, [i % 2 for i in range(40)], 1)):
        assert select_candidates(tied, clip_signals(*scores), RerankPlan(DEFAULT))["reranked"] == best


def test_without_log_probabilities_clip_alone_decides() -> None:
    candidates = [candidate("a", None), candidate("b", None)]
    assert order(rerank(candidates, clip_signals(0.0, 1.0), DEFAULT)) == (1, 0)


def test_each_selection_method_by_hand() -> None:
    candidates = [candidate("a", -0.1, 1, -0.5), candidate("b", -0.2, 2, -3.0), candidate("c", -9.0, 2, -1.0)]
    chosen = chosen_texts(candidates, clip_signals(0.0, 8.5, 9.0, prior=[0.0, 5.0, 8.0]))
    assert chosen == {"first": "a", "majority": "c", "likelihood": "a", "clip": "c", "clip_corrected": "b", "reranked": "b"}
    assert chosen_texts(candidates, None) == {"first": "a", "majority": "c", "likelihood": "a"}
    judged = {**clip_signals(0.0, 8.5, 9.0), "self": Signal((0.1, 0.2, 0.9))}
    assert chosen_texts(candidates, judged)["self"] == "c"
    assert chosen_texts(candidates, judged, RerankPlan(RerankWeights(likelihood=0.1, clip=0.0, self_evaluation=0.9)))["reranked"] == "c"


def test_the_most_probable_candidate_need_not_come_first() -> None:
    """The greedy answer of an endpoint comes first, whatever the probabilities of its samples."""
    assert chosen_texts([candidate("a", -2.0), candidate("b", -1.0)], None) == {"first": "a", "majority": "b", "likelihood": "b"}


@pytest.mark.parametrize("kind", ["yes/no", "counting"])
def test_skipped_question_types_keep_their_first_answer(kind: str) -> None:
    candidates = [candidate("a", -0.1), candidate("b", -0.2)]
    signals = clip_signals(0.0, 9.0)
    learned = LogisticModel(("clip",), (9.0,), 0.0)
    skipped = chosen_texts(candidates, signals, RerankPlan(RerankWeights(likelihood=0.1, clip=0.9), learned=learned), kind)
    assert (skipped["reranked"], skipped["learned"], skipped["clip"]) == ("a", "a", "b")
    reranked = chosen_texts(
        candidates, signals, RerankPlan(RerankWeights(likelihood=0.1, clip=0.9), skipped_question_types=(), learned=learned), kind
    )
    assert (reranked["reranked"], reranked["learned"]) == ("b", "b")


def test_each_form_of_the_clip_scores_by_hand() -> None:
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    signals = clip_signals(math.log(1), math.log(9), math.log(2), prior=[0.0, math.log(9), 0.0])
    by_form = {form: components(candidates, signals, form)["clip"].tolist() for form in ("softmax", "raw", "prior_corrected")}
    assert by_form["softmax"] == pytest.approx([0.0, 1.0, 1 / 8])
    assert by_form["raw"] == pytest.approx([0.0, 1.0, math.log(2) / math.log(9)])
    assert by_form["prior_corrected"] == pytest.approx([0.0, 0.0, 1.0])
    with pytest.raises(UsageError, match="prior_corrected needs the scores of clip on background images"):
        components(candidates, clip_signals(1.0, 2.0, 3.0), "prior_corrected")


def test_several_scorers_are_averaged() -> None:
    signals = {**clip_signals(1.0, 0.0), "siglip": Signal((0.0, 7.0))}
    assert components([candidate("a"), candidate("b")], signals, "raw")["clip"].tolist() == [0.5, 0.5]
    assert min_max(np.array([3.0, 3.0, np.nan])) == pytest.approx(np.array([1.0, 1.0, np.nan]), nan_ok=True)


def test_with_equal_counts_the_majority_is_the_most_probable() -> None:
    assert chosen_texts([candidate("a", -0.1, 1, -2.0), candidate("b", -0.5, 1, -1.0)], None)["majority"] == "b"


def test_a_chosen_answer_is_never_empty() -> None:
    assert set(chosen_texts([candidate("  ")], clip_signals(1.0)).values()) == {"unknown"}
    assert chosen_texts([], clip_signals()) == dict.fromkeys(("first", "majority", "likelihood", "clip", "reranked"), "unknown")


class NeverRight:
    """An answerer whose candidates never include the reference answer."""

    description = Description("planted")

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        random = np.random.default_rng(decoding.seed)
        texts = [f"wrong {i}" for i in range(decoding.num_candidates)] + [""]
        return [
            Answer(r.request_id, tuple(candidate(text, float(random.normal()), int(random.integers(1, 3))) for text in texts))
            for r in requests
        ]

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        raise NotImplementedError


def test_a_chosen_answer_is_one_of_the_candidates() -> None:
    reference = "right"
    requests = [make_request(str(i), f"Is it {reference}?") for i in range(200)]
    random = np.random.default_rng(0)
    for answer in NeverRight().answer(requests, Decoding(num_candidates=4)):
        scores = random.normal(size=len(answer.candidates)).tolist()
        chosen = chosen_texts(answer.candidates, clip_signals(*scores))
        assert set(chosen.values()) <= {one.text or "unknown" for one in answer.candidates}
        assert reference not in chosen.values()


@pytest.mark.parametrize(
    "function",
    [
        rerank,
        select_candidates,
        fuse,
        softmax_min_max,
        components,
        chosen_text,
        statement,
        features,
        confidence_features,
        Confidence.__call__,
        ImageTextScorer.signals,
        SelfEvaluator.judge,
        judge,
        reply,
        ClipScorer.score,
        ClipScorer.score_with_priors,
        FamilyAnswerer.answer,
        FamilyAnswerer.stream,
    ],
)
def test_no_function_has_a_parameter_for_reference_answers(function: Callable[..., Any]) -> None:
    names = {*inspect.signature(function).parameters, *(field.name for field in dataclasses.fields(Request))}
    assert names & {"reference", "references", "answers", "targets", "labels", "sample", "samples", "kwargs", "ground_truth"} == set()
