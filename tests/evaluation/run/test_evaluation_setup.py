"""Settings that do not fit together are said before anything is loaded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from answering.config import CheckpointSystem, QwenVlSystem, RerankConfig, RerankWeights
from errors import UsageError
from evaluation.config import EvalConfig, Thresholds
from evaluation.run.evaluation_run import evaluate
from evaluation.run.question_runner import NamedScorer
from tests.evaluation.planted import (
    PlantedAnswerer,
    PlantedScorer,
    experiment,
    mostly_right,
    questions,
    run,
    write_store,
)


def never_loaded(system: object) -> PlantedAnswerer:
    pytest.fail(f"{system} was loaded")


@pytest.mark.parametrize(
    ("settings", "rerank", "message"),
    [
        ({"systems": ()}, None, "eval.systems: empty"),
        ({"systems": (CheckpointSystem(name="a", kind="checkpoint"),) * 2}, None, "a stands there more than once"),
        ({"systems": (QwenVlSystem(name="q", kind="qwen3_vl", path="q"),), "controls": ("untuned",)}, None, "eval.controls"),
        (
            {"thresholds": Thresholds(min_lead=0.1), "controls": ("untuned",)},
            None,
            "eval.thresholds.min_lead: it is about the control shuffled_pictures",
        ),
        ({"split": "validation"}, RerankConfig(tune=True), "eval.split must be another one"),
        ({"split": "train"}, None, "no samples in the split 'train'"),
        ({}, RerankConfig(weights=RerankWeights(likelihood=0.0, clip=0.0)), "both are zero"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, Any], rerank: RerankConfig | None, message: str
) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=rerank)
    planned = dataclasses.replace(planned, settings=dataclasses.replace(planned.settings, **settings))
    assert isinstance(planned.settings, EvalConfig)
    with pytest.raises(UsageError, match=message):
        evaluate(planned, never_loaded, never_loaded, [NamedScorer("planted clip", PlantedScorer())])


def test_tuning_without_a_scorer_is_an_error(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(1)), tmp_path / "out", rerank=RerankConfig(tune=True))
    with pytest.raises(UsageError, match=r"without rerank\.clip"):
        run(planned, PlantedAnswerer(mostly_right))
