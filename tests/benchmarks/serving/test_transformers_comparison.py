"""`tools/benchmark.py serve --against transformers` asks our server and `transformers serve` the same questions about the same export."""

import os
from pathlib import Path

import pytest

from benchmarks.serving.serving_throughput import Workload
from benchmarks.serving.transformers_comparison import measure
from errors import UsageError

DEMO = Path(os.environ.get("TESSERA_DEMO", "none"))
WORKLOAD = Workload(questions=6, clients=3, rounds=2)


def test_a_model_that_is_not_exported_for_transformers_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"^model\.family: --against transformers exports siglip_qwen .* not qwen_vl$"):
        measure(Path("configs/tiny_qwen3_vl.yaml"), [], WORKLOAD)


@pytest.mark.slow
@pytest.mark.xdist_group("server")
@pytest.mark.skipif(not (DEMO / "checkpoints/tiny").is_dir(), reason="TESSERA_DEMO names no finished demo run")
def test_both_servers_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO)
    report = measure(Path("configs/tiny.yaml"), [], WORKLOAD)
    assert [(row["clients"], row["server"]) for row in report.measured["results"]] == [
        (1, "ours"),
        (1, "transformers serve"),
        (3, "ours"),
        (3, "transformers serve"),
    ]
    assert {row["same_answers"] for row in report.measured["results"]} == {WORKLOAD.questions}
    ours, theirs, *_ = report.measured["results"]
    speedups = [their / our for our, their in zip(ours["seconds"], theirs["seconds"], strict=True)]
    assert ours["faster_by"]["median"] == pytest.approx(sum(speedups) / 2)
