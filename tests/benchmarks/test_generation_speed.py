"""Ours and stock `generate` return the same candidates for the same questions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from answering.config import DecodingConfig
from benchmarks import generation_speed
from benchmarks.generation_speed import StockModel, measure, parse_generated
from benchmarks.timing import Workload
from errors import TesseraError, UsageError
from model.siglip_qwen.config import SiglipQwenConfig

CPU = torch.device("cpu")
SMALL = SiglipQwenConfig(max_length=512)
DECODING = DecodingConfig(num_candidates=3, max_new_tokens=4, batch_size=3)


def test_all_paths_return_the_same_candidates() -> None:
    report = measure("tiny", SMALL, DECODING, Workload(samples=5, rounds=2, stock_batch=2), CPU)
    ours, *others = report.measured["results"]
    assert [(row["path"], row["batch"]) for row in (ours, *others)] == [("ours", 3), ("stock, one at a time", 1), ("stock, batched", 2)]
    assert ours["questions_per_second"] == pytest.approx(5 / (sum(ours["seconds"]) / 2))
    for row in others:
        assert row["same_candidates"] == 5 and row["max_log_prob_diff"] < 1e-4
        speedups = [theirs / own for own, theirs in zip(ours["seconds"], row["seconds"], strict=True)]
        assert row["ours_is_faster_by"]["median"] == pytest.approx(sum(speedups) / 2)
    assert report.rows[1][4] == "5 of 5"
    assert report.facts["ours"] == "CUDA graphs: off (the model is on cpu)"


def test_both_sides_run_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_speed, "default_dtype", lambda _: torch.bfloat16)
    report = measure("tiny", SMALL, DECODING, Workload(samples=3, rounds=1, stock_batch=2), CPU)
    assert [bool(row["seconds"]) for row in report.measured["results"]] == [True] * 3
    assert "bfloat16" in report.facts["model"]


def test_different_candidates_are_an_error(monkeypatch: pytest.MonkeyPatch, different_stock: Callable[..., Any]) -> None:
    monkeypatch.setattr(generation_speed, "build_stock", different_stock)
    with pytest.raises(TesseraError, match=r"stock, one at a time: \d of 4 questions have the same candidates as ours"):
        measure("tiny", SMALL, DECODING, Workload(samples=4, rounds=1), CPU)


def test_a_batch_that_does_not_fit_is_halved_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    original = StockModel.answers

    def answers(stock: StockModel, batch: int) -> Any:
        if batch > 1:
            raise torch.OutOfMemoryError
        return original(stock, batch)

    monkeypatch.setattr(StockModel, "answers", answers)
    report = measure("tiny", SMALL, DECODING, Workload(samples=2, rounds=1, stock_batch=2), CPU)
    assert report.rows[-1][:3] == ["stock, batched", "2", "out of memory"]


def test_only_beam_search_is_measured() -> None:
    with pytest.raises(UsageError, match=r"decoding\.strategy"):
        measure("tiny", SMALL, DecodingConfig(strategy="sample"), Workload(samples=1, rounds=1), CPU)


def test_generated_ids_are_cut_after_the_first_end_token() -> None:
    sequences = parse_generated(torch.tensor([[5, 9, 0, 0], [5, 6, 7, 8]]), torch.tensor([-0.5, -0.25]), end_ids=[9, 3])
    assert [sequence.token_ids for sequence in sequences] == [(5, 9), (5, 6, 7, 8)]
    assert [sequence.log_prob for sequence in sequences] == [-1.0, -1.0]
