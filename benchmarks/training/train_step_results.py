"""Results of the training benchmark: from the seconds of its blocks to a report."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.timing import Ratio
from benchmarks.training.gradient_parity import GradientParity
from dataset.loading.collators import Example
from dataset.loading.encoded_sample import IGNORE_INDEX
from model.step_flops import StepFlops

COLUMNS = ("path", "batch", "samples/s", "tokens/s", "TFLOP/s", "of product", "peak GiB", "loss", "ours is faster by")


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """Counts of a block without padding: samples (one image each), tokens and supervised tokens."""

    samples: int
    tokens: int
    supervised: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "SampleCounts":
        """Counts of these samples."""
        supervised = sum(label != IGNORE_INDEX for example in examples for label in example.encoded.labels)
        return cls(len(examples), sum(len(example.encoded) for example in examples), supervised)

    def operations(self, cost: StepFlops) -> float:
        """Useful floating-point operations of a block (see `StepFlops`)."""
        return cost.flops(self.tokens, self.supervised, self.samples)


@dataclass(frozen=True, slots=True)
class Block:
    """What is done in a block: counts of its samples, useful floating-point operations, and TFLOP/s of the matrix product beside it."""

    sample_counts: SampleCounts
    operations: float
    product: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a benchmark ran.

    Args:
        size: size of the models.
        machine: hardware and software.
        precision: precision of the matrix products.
        our_settings: compilation and checkpointing of our side.
        settings: configuration, for the JSON file.
    """

    size: str
    machine: Machine
    precision: str
    our_settings: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements of one path.

    Args:
        path: name of the path.
        batch: description of a batch.
        seconds: of each block; empty if the path ran out of memory.
        samples_per_second: at the median block.
        tokens_per_second: tokens without padding, at the median block.
        useful_tflops: useful TFLOP/s.
        share_of_product: useful TFLOP/s divided by those of the matrix product.
        peak_gib: peak memory; None if the device does not report it.
        loss: loss before the training, on the samples of the gradient comparison.
        ours_is_faster_by: speed of ours divided by the speed of this path.
    """

    path: str
    batch: str
    seconds: tuple[float, ...] = ()
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    useful_tflops: float | None = None
    share_of_product: float | None = None
    peak_gib: float | None = None
    loss: float | None = None
    ours_is_faster_by: Ratio | None = None

    @classmethod
    def of(
        cls,
        path: str,
        batch: str,
        seconds: Sequence[float],
        ours: Sequence[float] | None,
        block: "Block",
        peaks: Sequence[int],
        loss: float | None,
    ) -> "Result":
        """Compute the measurements of a path.

        Args:
            path: name of the path.
            batch: description of a batch.
            seconds: of each block.
            ours: seconds of each block of our path; None if this is our path.
            block: what is done in one.
            peaks: peak bytes of each block.
            loss: loss before the training.
        """
        median_seconds = statistics.median(seconds)
        tflops = block.operations / median_seconds / 1e12
        return cls(
            path,
            batch,
            tuple(seconds),
            block.sample_counts.samples / median_seconds,
            block.sample_counts.tokens / median_seconds,
            tflops,
            tflops / block.product,
            max(peaks) / 2**30 if peaks else None,
            loss,
            Ratio.of(ours, seconds) if ours is not None else None,
        )

    def cells(self) -> list[str]:
        """A row of the table."""
        speed = format_number(self.samples_per_second) if self.seconds else "out of memory"
        rates = [speed, format_number(self.tokens_per_second, 0), format_number(self.useful_tflops, 3)]
        ratio = str(self.ours_is_faster_by) if self.ours_is_faster_by else format_number(None)
        shares = [format_number(self.share_of_product, percent=True), format_number(self.peak_gib), format_number(self.loss, 5)]
        return [self.path, self.batch, *rates, *shares, ratio]


def report(
    conditions: Conditions,
    parity: GradientParity | None,
    sample_counts: SampleCounts,
    product: Sequence[float],
    results: Sequence[Result],
) -> BenchmarkReport:
    """Build the report.

    Args:
        conditions: under which it ran.
        parity: comparison of both sides before the training; None if the stock model was not run.
        sample_counts: counts of a block.
        product: TFLOP/s of the matrix product in each round.
        results: measurements of all paths.
    """
    tokens, supervised = (count / sample_counts.samples for count in (sample_counts.tokens, sample_counts.supervised))
    mean = f"{tokens:.0f} tokens, {supervised:.0f} of them supervised"
    facts = {
        **conditions.machine.facts(),
        "model": f"{conditions.size}, random weights, products in {conditions.precision}",
        "ours": conditions.our_settings,
        **({} if parity is None else {"before training": str(parity)}),
        "a block": f"{sample_counts.samples} samples of {mean}; {len(product)} interleaved blocks of each path",
        "matrix product": f"{statistics.median(product):,.2f} TFLOP/s ({min(product):,.2f} .. {max(product):,.2f})",
    }
    measured = {
        "size": conditions.size,
        "machine": conditions.machine.to_dict(),
        "precision": conditions.precision,
        "ours": conditions.our_settings,
        "agreement": None if parity is None else {**asdict(parity), "loss_off": parity.loss_off},
        "work": asdict(sample_counts),
        "product_tflops": list(product),
        "results": [asdict(result) for result in results],
        "settings": conditions.settings,
    }
    return BenchmarkReport(f"Training step, {conditions.size}", facts, COLUMNS, [result.cells() for result in results], measured)
