"""Conflicting settings are errors before anything is loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from answering.config import CheckpointSystem, QwenVlSystem, RerankConfig, RerankWeights
from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.run.question_runner import NamedScorer
from tests.evaluation.fakes import evaluate, experiment, mostly_right, questions, run, write_store
from tests.fakes import FakeAnswerer, FakeScorer


def fail_to_load(system: object) -> FakeAnswerer:
    pytest.fail(f"{system} was loaded")


@pytest.mark.parametrize(
    ("settings", "rerank", "message"),
    [
        ({"systems": ()}, None, "eval.systems: empty"),
        ({"systems": (CheckpointSystem(name="a", kind="checkpoint"),) * 2}, None, "a occurs more than once"),
        ({"systems": (QwenVlSystem(name="q", kind="qwen3_vl", path="q"),), "controls": ("untuned",)}, None, "eval.controls"),
        (
            {"thresholds": Thresholds(min_lead=0.1), "controls": ("untuned",)},
            None,
            "eval.thresholds.min_lead: this threshold needs the control shuffled_images",
        ),
        ({"split": "validation"}, RerankConfig(tune=True), "eval.split must be another split"),
        ({"split": "train"}, None, "no samples in the split 'train'"),
        ({}, RerankConfig(weights=RerankWeights(likelihood=0.0, clip=0.0)), "are both zero"),
    ],
)
def test_conflicting_settings_are_errors_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, Any], rerank: RerankConfig | None, message: str
) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=rerank)
    planned = dataclasses.replace(planned, settings=dataclasses.replace(planned.settings, **settings))
    assert isinstance(planned.settings, EvalConfig)
    with pytest.raises(UsageError, match=message):
        evaluate(planned, fail_to_load, fail_to_load, [NamedScorer("planted clip", FakeScorer())])


def test_tuning_without_a_scorer_is_an_error(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=RerankConfig(tune=True))
    with pytest.raises(UsageError, match=r"without rerank\.clip"):
        run(planned, FakeAnswerer(mostly_right))
