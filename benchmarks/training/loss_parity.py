"""Does the fast path learn what the plain one learns? Both are trained on the same samples of an experiment, step by step.

Fast is our training step; plain is transformers' LLaVA with PEFT, on padded batches. In: an experiment whose data is merged. Out:
a table of both validation losses.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from benchmarks.benchmark_report import Machine, Report, number
from benchmarks.full_size_models import check_comparable
from benchmarks.training.timed_steps import Batch, Trained
from benchmarks.training.train_step import OURS, STOCK, Setup, our_side, same_adapters, stock_side
from dataset.loading.collators import Example, PaddedCollator
from dataset.loading.encoded_sample import IGNORED
from dataset.loading.samplers import EpochBatches
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import build, default_dtype
from training.config import Experiment
from training.data_loading import TrainingData
from training.optimization.lr_scheduler import schedule
from training.run_setup import Prepared, prepare

TOLERANCE = 0.01
"""Largest relative difference of the last validation losses."""
COLUMNS = ("step", "training loss, ours", "stock", "validation loss, ours", "stock", "differs by")


@dataclass(frozen=True, slots=True)
class Row:
    """Losses in nats a token: of a step's batch (before the first step there is none) and of the validation samples."""

    step: int
    ours: float | None
    stock: float | None
    validation_ours: float
    validation_stock: float

    @property
    def differs_by(self) -> float:
        """Relative difference of the validation losses."""
        return abs(self.validation_ours - self.validation_stock) / self.validation_stock

    def cells(self) -> list[str]:
        """A row of the table."""
        losses = (self.ours, self.stock, self.validation_ours, self.validation_stock)
        return [str(self.step), *(number(loss, 5) for loss in losses), number(self.differs_by, 3, percent=True)]


def measure(config: Experiment, steps: int, every: int) -> Report:
    """Train both for so many steps of the last stage, from a fresh projector and fresh adapters, with its rates and schedule.

    every: steps between validations. Each micro-batch is a step. Raises UsageError for settings that do not fit.
    """
    check_comparable(config.model)
    if config.train.cache_features or config.data.augmentation is not None:
        raise UsageError("train.cache_features, data.augmentation: both paths read the same plain pictures; turn them off")
    prepared = prepare(config)
    if prepared.validation is None:
        raise UsageError(f"{prepared.store.folder}: no validation samples, by which both paths are compared")
    torch.manual_seed(config.train.seed)
    dtype = default_dtype(prepared.device) if prepared.bf16 else torch.float32
    base = build(config.model, placeholder_id=prepared.processor.placeholder_id, dtype=dtype, device=prepared.device)
    setup = Setup(config.model, config.train, prepared.device, prepared.bf16, prepared.processor, (), prepared.batching)
    stock = stock_side(setup, base)
    ours, compiling = our_side(setup, base)
    same_adapters(ours, stock)
    rows = _train(_Sides(prepared, ours, stock), steps, every)
    facts = {
        **Machine.here(prepared.device).facts(),
        "model": f"{config.model.language}, products in {setup.precision}",
        "ours": f"{'packed rows' if prepared.batching.packed else 'padded batches'}; compile: {compiling}",
        "trained on": f"{prepared.store.folder}; the same samples in every step",
    }
    measured = {"steps": steps, "rows": [{**asdict(row), "differs_by": row.differs_by} for row in rows]}
    settings = {"model": asdict(config.model), "train": asdict(config.train)}
    return Report("Fast and plain path", facts, COLUMNS, [row.cells() for row in rows], {**measured, "settings": settings})


def check(report: Report) -> None:
    """Raise TesseraError where both paths have not learnt the same."""
    off = report.measured["rows"][-1]["differs_by"]
    if not off <= TOLERANCE:
        raise TesseraError(
            f"behind {report.measured['steps']} steps the validation losses differ by {off:.2%}; at most {TOLERANCE:.0%} is right"
        )


class _Sides:
    """Both models and what they are given: every batch in the layout of each."""

    def __init__(self, prepared: Prepared, ours: Trained, stock: Trained):
        self.ours, self.stock = ours, stock
        self._prepared, self.train = prepared, prepared.config.train
        self._fast = prepared.batching.collator(prepared.processor)
        self._plain = PaddedCollator(int(prepared.processor.tokenizer.pad_token_id))

    def batches(self) -> Iterator[tuple[Batch, Batch]]:
        """Of the last stage, epoch after epoch, for ever."""
        prepared = self._prepared
        seed, epoch = self.train.seed + len(self.train.stages) - 1, 0
        data = TrainingData(prepared.store, prepared.lengths, prepared.processor, seed)
        while True:
            sampler = prepared.batching.sampler(prepared.lengths, seed, epoch + 1)
            sampler.set_epoch(epoch)
            yield from self._layouts(data, sampler)
            epoch += 1

    def validation(self) -> Iterator[tuple[Batch, Batch]]:
        """The validation samples once."""
        data = self._prepared.validation
        assert data is not None  # checked in `measure`
        return self._layouts(data, self._prepared.batching.sampler(data.lengths, data.seed, 1))

    def _layouts(self, data: TrainingData, sampler: EpochBatches) -> Iterator[tuple[Batch, Batch]]:
        for keys in sampler:
            examples: Sequence[Example] = [data[key] for key in keys]
            yield self._fast(examples), self._plain(examples)

    def validate(self) -> tuple[float, float]:
        """Mean losses over all supervised tokens of the validation samples."""
        sums, tokens = [0.0, 0.0], 0
        for batches in self.validation():
            supervised = int((batches[1]["labels"] != IGNORED).sum())
            tokens += supervised
            for i, (side, batch) in enumerate(zip((self.ours, self.stock), batches, strict=True)):
                side.model.eval()
                with torch.no_grad():
                    sums[i] += float(side.loss(batch)) * supervised
                side.model.train()
        return sums[0] / tokens, sums[1] / tokens


def _train(sides: _Sides, steps: int, every: int) -> list[Row]:
    warmup = math.ceil(sides.train.warmup * steps)
    pair = (sides.ours, sides.stock)
    rates = [torch.optim.lr_scheduler.LambdaLR(side.optimizer, partial(schedule, warmup=warmup, steps=steps)) for side in pair]
    rows = [Row(0, None, None, *sides.validate())]
    for step, batches in zip(range(1, steps + 1), sides.batches(), strict=False):
        losses = [side.step(batch) for side, batch in zip(pair, batches, strict=True)]
        for rate in rates:
            rate.step()
        if step % every == 0 or step == steps:
            rows.append(Row(step, float(losses[0]), float(losses[1]), *sides.validate()))
            print(f"step {step}/{steps} | {OURS} {rows[-1].validation_ours:.5f} {STOCK} {rows[-1].validation_stock:.5f}", flush=True)
    return rows
