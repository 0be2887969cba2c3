"""Fitted values are applied as computed by hand: logistic model, isotonic steps, features, learned fusion; and they are found on disk."""

import math
from pathlib import Path

import numpy as np
import pytest

from answering.config import RerankConfig, RerankWeights
from answering.protocol import Candidate
from answering.rerank.candidate_scores import Signal, fill_missing
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.fitted_reranker import FitConditions, FittedReranker, find_fitted, load_fitted, rerank_settings, save_fitted
from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel, sigmoid
from answering.rerank.score_fusion import features
from errors import TesseraError, UsageError

CANDIDATES = [Candidate("a", math.log(0.5), math.log(0.5), "a", 3), Candidate("b", math.log(0.25), math.log(0.25), "b", 1)]
SIGNALS = {"clip": Signal((2.0, 1.0), (1.5, 1.0)), "self": Signal((0.9, 0.2))}


def test_a_logistic_model_by_hand() -> None:
    model = LogisticModel(("x", "y"), (2.0, -1.0), 0.5)
    assert model.probabilities({"x": [0.0, 1.0], "y": [0.5, 0.0], "unused": [9.0, 9.0]}) == pytest.approx([0.5, 1 / (1 + math.exp(-2.5))])
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(UsageError, match=r"needs the features y; the rerank settings have changed"):
        model.probabilities({"x": [1.0]})


def test_isotonic_steps_have_their_value_from_their_start_on() -> None:
    steps = IsotonicSteps((0.2, 0.5), (0.1, 0.7))
    assert [steps(x) for x in (0.0, 0.2, 0.49, 0.5, 1.0)] == [0.1, 0.1, 0.1, 0.7, 0.7]


def test_confidence_features_by_hand() -> None:
    first = confidence_features(CANDIDATES, 0, SIGNALS)
    assert first == pytest.approx({"agreement": 0.75, "confidence": 0.5, "margin": 1 / 3, "clip_corrected": 0.5, "self": 0.9})
    assert confidence_features(CANDIDATES, 1, SIGNALS)["margin"] == pytest.approx(-1 / 3)
    assert confidence_features(CANDIDATES[:1], 0, {})["margin"] == 1.0


def test_confidence_is_the_logistic_model_followed_by_the_steps() -> None:
    model = LogisticModel(("agreement", "self"), (4.0, 1.0), -3.0)
    plain = Confidence(model)(CANDIDATES, 0, SIGNALS)
    assert plain == pytest.approx(1 / (1 + math.exp(-0.9)))
    assert Confidence(model, IsotonicSteps((0.0, plain), (0.1, 0.6)))(CANDIDATES, 0, SIGNALS) == 0.6


def test_features_of_learned_fusion_are_shares_over_the_candidates() -> None:
    table = features(CANDIDATES, SIGNALS)
    assert table["likelihood"] == pytest.approx([2 / 3, 1 / 3])
    assert table["agreement"] == [0.75, 0.25]
    assert table["first"] == [1.0, 0.0]
    assert sum(table["clip"]) == pytest.approx(1.0)
    assert table["clip_corrected"] == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))])
    assert LogisticModel(("self",), (1.0,), 0.0).probabilities(features(CANDIDATES, SIGNALS)) == pytest.approx(
        [1 / (1 + math.exp(-0.9)), 1 / (1 + math.exp(-0.2))]
    )


def test_missing_signals_are_filled_with_zeros() -> None:
    filled = fill_missing({"clip": SIGNALS["clip"]}, {"clip": True, "other": True, "self": False}, 2)
    assert filled == {"clip": SIGNALS["clip"], "other": Signal((0.0, 0.0), (0.0, 0.0)), "self": Signal((0.0, 0.0))}


def test_a_fitted_reranker_that_does_not_match_is_explained(tmp_path: Path) -> None:
    model, decoding, settings = {"kind": "checkpoint", "path": "a", "files": "ab"}, {"num_candidates": 5}, rerank_settings(RerankConfig())
    scorers = {"clip": "files cd, sentence"}
    assert find_fitted(tmp_path, FitConditions(model, decoding, scorers, settings)) == (None, None)
    save_fitted(tmp_path / "ours.json", FittedReranker(model, decoding, scorers, settings, RerankPlan(), {}))
    save_fitted(tmp_path / "other.json", FittedReranker({"kind": "qwen3_vl", "files": "ef"}, decoding, scorers, settings, RerankPlan(), {}))
    # The same content at another place is the same model.
    assert find_fitted(tmp_path, FitConditions({**model, "path": "b"}, decoding, scorers, settings))[0] is not None
    trained_again = find_fitted(tmp_path, FitConditions({**model, "files": "gh"}, decoding, scorers, settings))
    assert trained_again == (None, f"{tmp_path / 'ours.json'} was fitted for another model (content of its files)")
    _, asked_otherwise = find_fitted(tmp_path, FitConditions(model, {"num_candidates": 4}, {"clip": "files ij, sentence"}, settings))
    assert asked_otherwise == f"{tmp_path / 'ours.json'} was fitted for another decoding (num_candidates) and another set of scorers (clip)"


def test_a_fitted_reranker_is_found_on_disk_only_for_the_system_that_it_was_fitted_for(tmp_path: Path) -> None:
    plan = RerankPlan(
        RerankWeights(likelihood=0.3, clip=0.7),
        "raw",
        ("counting",),
        LogisticModel(("x",), (1.5,), 0.1),
        Confidence(LogisticModel((), (), 0.0)),
    )
    model, decoding, scorers = {"kind": "checkpoint", "files": "ab"}, {"num_candidates": 5}, {"clip": "there (cd), sentence"}
    settings = rerank_settings(RerankConfig())
    fitted = FittedReranker(model, decoding, scorers, settings, plan, {"clip": [0.5, -0.25]})
    save_fitted(tmp_path / "ours.json", fitted)
    assert load_fitted(tmp_path / "ours.json") == fitted
    assert find_fitted(tmp_path, FitConditions(model, decoding, scorers, settings)) == (fitted, None)
    background_images = fitted.background_images("clip")
    assert background_images is not None
    assert background_images.mean().tolist() == [0.5, -0.25]
    assert fitted.background_images("siglip") is None
    for other in (
        FitConditions({**model, "files": "trained again"}, decoding, scorers, settings),
        FitConditions(model, {"num_candidates": 4}, scorers, settings),
        FitConditions(model, decoding, {"clip": "there (cd), joined"}, settings),
        FitConditions(model, decoding, scorers, rerank_settings(RerankConfig(clip_score_form="raw"))),
    ):
        assert find_fitted(tmp_path, other)[0] is None
    assert find_fitted(tmp_path / "nowhere", fitted) == (None, None)
    (tmp_path / "ours.json").write_text('{"plan": 1}')
    with pytest.raises(TesseraError, match=r"ours.json: not a fitted reranker"):
        find_fitted(tmp_path, fitted)
