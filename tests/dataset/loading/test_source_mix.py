"""Sources take part in an epoch by weight, by temperature or by epochs of their own; the plan is a property of the run."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dataset.config import DataConfig
from dataset.loading.samplers import DistributedBatchSampler, LengthGroupedBatching, PackedBatching, StepShape
from dataset.loading.source_mix import SourceMix, describe_shares, source_shares
from dataset.source_config import LlavaSource
from errors import UsageError

SIZES = (9000, 900, 100)


def config(*keys: dict[str, Any], **settings: Any) -> DataConfig:
    return DataConfig(sources=tuple(LlavaSource(format="llava", annotations=Path("a.json"), **key) for key in keys), **settings)


def mix(data: DataConfig, samples: np.ndarray | None = None) -> SourceMix:
    source = np.repeat(np.arange(len(SIZES)), SIZES)
    found = SourceMix.of(data, source, np.ones(len(source), dtype=np.int64) if samples is None else samples)
    assert found is not None
    return found


WEIGHTS = config({"weight": 2}, {"weight": 5}, {"weight": 3})


@pytest.mark.parametrize(
    ("data", "expected", "length"),
    [
        (WEIGHTS, (0.2, 0.5, 0.3), 10_000),
        (config({}, {}, {}, mix_temperature=1), (0.9, 0.09, 0.01), 10_000),
        (config({}, {}, {}, mix_temperature=2), (0.703, 0.222, 0.074), 10_000),
        (config({}, {"epochs": 2}, {"epochs": 0.5}), (9000 / 10850, 1800 / 10850, 50 / 10850), 10_850),
    ],
    ids=["weights", "temperature 1", "temperature 2", "epochs"],
)
def test_the_shares_of_an_epoch_are_those_that_were_asked_for(data: DataConfig, expected: tuple[float, ...], length: int) -> None:
    plan = mix(data)
    for epoch in range(3):
        indices = plan.indices(7, epoch)
        assert abs(len(indices) - length) <= len(SIZES)  # each source's number is rounded
        assert plan.shares(indices) == pytest.approx(expected, abs=1e-3)


def test_no_sample_is_repeated_before_all_others_of_its_source_were_used() -> None:
    plan = mix(WEIGHTS)
    uses: Counter[int] = Counter()
    for epoch in range(5):
        uses.update(plan.indices(1, epoch).tolist())
        for begin, size in ((0, 9000), (9000, 900), (9900, 100)):
            counts = [uses[i] for i in range(begin, begin + size)]
            assert max(counts) - min(counts) <= 1


def test_conversations_of_several_samples_count_with_all_of_them() -> None:
    samples = np.ones(sum(SIZES), dtype=np.int64)
    samples[:9000] = 4
    plan = mix(WEIGHTS, samples)
    indices = plan.indices(0, 0)
    assert plan.shares(indices) == pytest.approx((0.2, 0.5, 0.3), abs=1e-3)
    assert samples[indices].sum() == pytest.approx(samples.sum(), rel=1e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_shares_hold_from_the_first_20000_samples_on_whatever_the_number_of_processes(packed: bool) -> None:
    plan = mix(WEIGHTS)
    lengths = [np.random.default_rng(epoch).integers(20, 90, sum(SIZES)) for epoch in range(4)]
    chosen = [plan.indices(3, epoch) for epoch in range(4)]
    batching = PackedBatching(lengths, 256, 3, chosen) if packed else LengthGroupedBatching(lengths, 8, 3, chosen)
    runs = []
    for world_size in (1, 4):
        shape = StepShape(8, 8 // world_size)
        ranks = [list(DistributedBatchSampler(batching, 4, shape, rank, world_size)) for rank in range(world_size)]
        steps = zip(*(batches[::1] for batches in ranks), strict=True)
        keys = [(key.epoch, key.index) for step in steps for batch in step for key in batch if key.supervised]
        runs.append(keys)
    assert sorted(runs[0]) == sorted(runs[1])
    for keys in runs:
        shares = plan.shares(np.array([index for _, index in keys[:20_000]]))
        assert np.abs(shares - (0.2, 0.5, 0.3)).max() < 0.01


def test_the_plan_depends_on_the_seed_and_the_epoch_alone() -> None:
    plan = mix(WEIGHTS)
    assert np.array_equal(plan.indices(1, 2), mix(WEIGHTS).indices(1, 2))
    assert not np.array_equal(plan.indices(1, 2), plan.indices(2, 2))
    assert not np.array_equal(plan.indices(1, 2), plan.indices(1, 3))


def test_without_weights_every_sample_is_used_once() -> None:
    assert SourceMix.of(config({}, {}, {}), np.repeat(np.arange(3), SIZES), np.ones(sum(SIZES), dtype=np.int64)) is None
    assert source_shares(config({}), [3]) is None


def test_a_weight_without_a_training_sample_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"data\.sources\.1\.weight: the source has no training sample"):
        source_shares(config({"weight": 1}, {"weight": 1}), [5, 0])


@pytest.mark.parametrize(
    ("keys", "settings", "message"),
    [
        (({"weight": 1}, {}), {}, "either all sources have a weight or none has"),
        (({"weight": 1}, {"weight": 1}), {"mix_temperature": 2}, "weight and mix_temperature are given; one of them decides"),
        (({"epochs": 2}, {}), {"mix_temperature": 2}, "epochs and mix_temperature are given; one of them decides"),
        (({"epochs": 2}, {}), {"balance": "category"}, "balance: category cannot be combined"),
    ],
    ids=["some weights", "weights and temperature", "epochs and temperature", "balance"],
)
def test_contradicting_settings_are_refused(keys: tuple[dict[str, Any], ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(*keys, **settings)


def test_shares_are_described_in_words() -> None:
    assert describe_shares(["a", "b"], np.array([0.3, 0.7])) == "a 30.0 %, b 70.0 %"
