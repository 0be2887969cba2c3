"""Loss parity: our training step and the stock model (transformers' LLaVA with PEFT, padded batches), trained on the same samples.

The experiment's data must be merged. The result is a table of both validation losses.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.full_size_models import check_comparable
from benchmarks.training.trained_models import Batch, Setup, TrainedModel, copy_adapters, our_side, stock_side
from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.loading.samplers import SampleKey
from errors import TesseraError, UsageError
from model.family import LoadOptions
from model.kernels.autocast import frozen_dtype
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import siglip_qwen_settings
from model.siglip_qwen.processor import Processor
from training.config import Experiment, TrainConfig
from training.data_loading import TrainingData
from training.optimization.lr_scheduler import num_warmup_steps, rate_factor
from training.run_setup import RunSetup, setup_run

TOLERANCE = 0.01
"""Largest accepted relative difference of the last validation losses."""
COLUMNS = ("step", "training loss, ours", "stock", "validation loss, ours", "stock", "differs by")


@dataclass(frozen=True, slots=True)
class LossRow:
    """Losses after a step, in nats per token: of the training (None before the first step) and of the validation samples."""

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
        return [str(self.step), *(format_number(loss, 5) for loss in losses), format_number(self.differs_by, 3, percent=True)]


def measure(config: Experiment, steps: int, eval_steps: int) -> BenchmarkReport:
    """Train both sides with the settings of the last stage, from a freshly initialised connector and adapters.

    Args:
        config: the experiment; each micro-batch is an optimizer step.
        steps: optimizer steps.
        eval_steps: steps between validations.

    Raises:
        UsageError: settings that cannot be compared.
    """
    model = siglip_qwen_settings(config.model, "the stock LLaVA to compare with")
    check_comparable(model)
    if config.train.cache_vision_features or config.data.augmentation is not None:
        raise UsageError("train.cache_vision_features, data.augmentation: both paths read the same unmodified images; turn them off")
    run_setup = setup_run(config)
    if run_setup.validation is None:
        raise UsageError(f"{run_setup.store.folder}: there are no validation samples, on which both paths are compared")
    torch.manual_seed(config.train.seed)
    dtype = frozen_dtype(run_setup.device, run_setup.precision)
    base = build(model, image_token_id=run_setup.processor.image_token_id, options=LoadOptions(dtype, run_setup.device))
    assert isinstance(run_setup.processor, Processor)  # that of the family
    setup = Setup(model, config.train, run_setup.device, run_setup.precision, run_setup.processor, (), run_setup.batching)
    stock = stock_side(setup, base)
    ours, compile_choice = our_side(setup, base)
    copy_adapters(ours, stock)
    rows = _train(_ModelPair(run_setup, setup, ours, stock), config.train, steps, eval_steps)
    facts = {
        **Machine.current(run_setup.device).facts(),
        "model": f"{model.language}, products in {setup.precision}",
        "ours": f"{'packed rows' if run_setup.batching.packed else 'padded batches'}; compile: {compile_choice}",
        "trained on": f"{run_setup.store.folder}; the same samples in every step",
    }
    measured = {"steps": steps, "rows": [{**asdict(row), "differs_by": row.differs_by} for row in rows]}
    settings = {"model": asdict(config.model), "train": asdict(config.train)}
    return BenchmarkReport("Loss parity", facts, COLUMNS, [row.cells() for row in rows], {**measured, "settings": settings})


def check(report: BenchmarkReport) -> None:
    """Raise TesseraError if the last validation losses differ by more than `TOLERANCE`."""
    difference = report.measured["rows"][-1]["differs_by"]
    if not difference <= TOLERANCE:
        raise TesseraError(
            f"after {report.measured['steps']} steps the validation losses differ by {difference:.2%}; expected at most {TOLERANCE:.0%}"
        )


class _ModelPair:
    """Both models, and every batch in the layout of each."""

    def __init__(self, run_setup: RunSetup, setup: Setup, ours: TrainedModel, stock: TrainedModel):
        self._run_setup, self.sides = run_setup, (ours, stock)
        self._collators = (setup.collate, setup.collate_stock)

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """Batches of the last stage, endlessly."""
        run_setup, train = self._run_setup, self._run_setup.config.train
        seed = train.seed + len(train.stages) - 1
        data = TrainingData(run_setup.store, run_setup.lengths, run_setup.processor, seed)
        for epoch in itertools.count():
            batches = run_setup.batching.plan(run_setup.lengths, seed, epoch + 1).batches(epoch)
            yield from self._collate(data, ([SampleKey(index, epoch) for index in batch] for batch in batches))

    def _collate(self, data: TrainingData, sampler: Iterable[list[SampleKey]]) -> Iterator[tuple[Batch, ...]]:
        for keys in sampler:
            examples: Sequence[Example] = [data[key] for key in keys]
            yield tuple(collate(examples) for collate in self._collators)

    def validate(self) -> tuple[float, float]:
        """Mean losses of both sides over all supervised tokens of the validation samples."""
        data = self._run_setup.validation
        assert data is not None  # checked in `measure`
        sums, tokens = [0.0, 0.0], 0
        for batches in self._collate(data, self._run_setup.batching.validation_sampler(data.lengths, data.seed)):
            supervised = int((batches[1]["labels"] != IGNORE_INDEX).sum())
            tokens += supervised
            for i, (side, batch) in enumerate(zip(self.sides, batches, strict=True)):
                side.model.eval()
                with torch.no_grad():
                    sums[i] += float(side.loss(batch)) * supervised
                side.model.train()
        return sums[0] / tokens, sums[1] / tokens


def _train(models: _ModelPair, train: TrainConfig, steps: int, eval_steps: int) -> list[LossRow]:
    schedule = partial(rate_factor, kind="cosine", warmup_steps=num_warmup_steps(train.warmup_steps, steps), steps=steps)
    lr_schedulers = [torch.optim.lr_scheduler.LambdaLR(side.optimizer, schedule) for side in models.sides]
    rows = [LossRow(0, None, None, *models.validate())]
    for step, batches in zip(range(1, steps + 1), models.batches(), strict=False):
        losses = [side.step(batch) for side, batch in zip(models.sides, batches, strict=True)]
        for lr_scheduler in lr_schedulers:
            lr_scheduler.step()
        if step % eval_steps == 0 or step == steps:
            rows.append(LossRow(step, float(losses[0]), float(losses[1]), *models.validate()))
            print(f"step {step}/{steps} | ours {rows[-1].validation_ours:.5f} stock {rows[-1].validation_stock:.5f}", flush=True)
    return rows
