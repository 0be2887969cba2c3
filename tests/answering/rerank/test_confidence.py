"""Numbers that were fitted elsewhere, used: probabilities, steps, evidence, learned fusion, plans on disk."""

import math
from pathlib import Path

import numpy as np
import pytest

from answering.config import RerankConfig, RerankWeights
from answering.protocol import Candidate
from answering.rerank.candidate_scores import Signal, fill_missing
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.fitted_reranker import FittedReranker, find_fitted, load_fitted, rerank_settings, save_fitted
from answering.rerank.learned_fusion import features, fused
from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel, sigmoid
from errors import TesseraError, UsageError

CANDIDATES = [Candidate("a", math.log(0.5), math.log(0.5), "a", 3), Candidate("b", math.log(0.25), math.log(0.25), "b", 1)]
SIGNALS = {"clip": Signal((2.0, 1.0), (1.5, 1.0)), "self": Signal((0.9, 0.2))}


def test_a_logistic_model_by_hand() -> None:
    model = LogisticModel(("x", "y"), (2.0, -1.0), 0.5)
    assert model.probabilities({"x": [0.0, 1.0], "y": [0.5, 0.0], "unused": [9.0, 9.0]}) == pytest.approx([0.5, 1 / (1 + math.exp(-2.5))])
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(UsageError, match=r"needs y; the settings of rerank have changed"):
        model.probabilities({"x": [1.0]})


def test_steps_hold_from_where_they_start() -> None:
    steps = IsotonicSteps((0.2, 0.5), (0.1, 0.7))
    assert [steps(x) for x in (0.0, 0.2, 0.49, 0.5, 1.0)] == [0.1, 0.1, 0.1, 0.7, 0.7]


def test_the_evidence_for_an_answer_by_hand() -> None:
    first = confidence_features(CANDIDATES, 0, SIGNALS)
    assert first == pytest.approx({"agreement": 0.75, "confidence": 0.5, "margin": 1 / 3, "clip_corrected": 0.5, "self": 0.9})
    assert confidence_features(CANDIDATES, 1, SIGNALS)["margin"] == pytest.approx(-1 / 3)
    assert confidence_features(CANDIDATES[:1], 0, {})["margin"] == 1.0


def test_confidence_is_the_model_and_then_the_steps() -> None:
    model = LogisticModel(("agreement", "self"), (4.0, 1.0), -3.0)
    plain = Confidence(model)(CANDIDATES, 0, SIGNALS)
    assert plain == pytest.approx(1 / (1 + math.exp(-0.9)))
    assert Confidence(model, IsotonicSteps((0.0, plain), (0.1, 0.6)))(CANDIDATES, 0, SIGNALS) == 0.6


def test_learned_features_are_shares_of_the_question() -> None:
    found = features(CANDIDATES, SIGNALS)
    assert found["likelihood"] == pytest.approx([2 / 3, 1 / 3])
    assert found["agreement"] == [0.75, 0.25]
    assert found["first"] == [1.0, 0.0]
    assert sum(found["clip"]) == pytest.approx(1.0)
    assert found["clip_corrected"] == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))])
    assert fused(LogisticModel(("self",), (1.0,), 0.0), CANDIDATES, SIGNALS) == pytest.approx(
        [1 / (1 + math.exp(-0.9)), 1 / (1 + math.exp(-0.2))]
    )


def test_a_scorer_that_saw_nothing_finds_all_alike() -> None:
    whole = fill_missing({"clip": SIGNALS["clip"]}, {"clip": True, "other": True, "self": False}, 2)
    assert whole == {"clip": SIGNALS["clip"], "other": Signal((0.0, 0.0), (0.0, 0.0)), "self": Signal((0.0, 0.0))}


def test_a_plan_comes_back_from_disk_for_the_system_that_it_was_made_for(tmp_path: Path) -> None:
    plan = RerankPlan(
        RerankWeights(likelihood=0.3, clip=0.7),
        "raw",
        ("counting",),
        LogisticModel(("x",), (1.5,), 0.1),
        Confidence(LogisticModel((), (), 0.0)),
    )
    model, decoding, scorers = {"kind": "checkpoint", "files": "ab"}, {"k": 5}, {"clip": "there (cd), sentence"}
    settings = rerank_settings(RerankConfig())
    known = FittedReranker(plan, model, decoding, scorers, settings, {"clip": [0.5, -0.25]})
    save_fitted(tmp_path / "ours.json", known)
    assert load_fitted(tmp_path / "ours.json") == known
    assert find_fitted(tmp_path, model, decoding, scorers, settings) == known
    background_images = known.background_images("clip")
    assert background_images is not None
    assert background_images.mean().tolist() == [0.5, -0.25]
    assert known.background_images("siglip") is None
    assert find_fitted(tmp_path, {**model, "files": "trained again"}, decoding, scorers, settings) is None
    assert find_fitted(tmp_path, model, {"k": 4}, scorers, settings) is None
    assert find_fitted(tmp_path, model, decoding, {"clip": "there (cd), joined"}, settings) is None
    assert find_fitted(tmp_path, model, decoding, scorers, rerank_settings(RerankConfig(clip_score_form="raw"))) is None
    assert find_fitted(tmp_path / "nowhere", model, decoding, scorers, settings) is None
    (tmp_path / "ours.json").write_text('{"plan": 1}')
    with pytest.raises(TesseraError, match=r"ours.json: not a plan of the rerank"):
        find_fitted(tmp_path, model, decoding, scorers, settings)
