"""The report of an ablation: a row a variant with accuracy and cost, differences to the base with verdicts, a chart, and how it was judged.

In: the valid results. Out: Markdown text, and the differences that it and the chart show.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from atomic_io import write_text
from benchmarks.ablation.ablation_chart import difference_chart
from benchmarks.ablation.ablation_data import CATEGORIES, CATEGORY_DESCRIPTIONS, KINDS
from benchmarks.ablation.ablation_runs import Laboratory, StoredResults
from benchmarks.ablation.config import BASE
from benchmarks.ablation.run_records import RunFigures, RunRecord, mean_score
from benchmarks.benchmark_report import EMPTY_CELL, format_number
from evaluation.confidence_intervals import MIN_CLUSTERS
from evaluation.report.table_format import markdown
from evaluation.seed_variance import compare_seeds
from evaluation.statistics import Difference, TestedDifference, with_verdicts

REPORT_FILE, CHART_FILE = "report.md", "differences.png"
_VERDICTS = {"a": "better", "b": "worse", "not shown": "not shown"}


@dataclass(frozen=True, slots=True)
class VariantResult:
    """Finished and failed runs of a variant, by seed. seconds: of each finished run."""

    name: str
    finished: Mapping[int, RunFigures]
    failed: Mapping[int, str]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, name: str, records: Mapping[int, RunRecord]) -> "VariantResult":
        """From the records of a variant."""
        finished = {seed: record.figures for seed, record in sorted(records.items()) if record.figures is not None}
        failed = {seed: record.error or "" for seed, record in sorted(records.items()) if record.figures is None}
        return cls(name, finished, failed, tuple(records[seed].seconds for seed in finished))

    def scores(self, category: str) -> np.ndarray:
        """VQA accuracy [seeds, questions of the category]."""
        figures = list(self.finished.values())
        mask = figures[0].answers.mask(category)
        return np.stack([run.answers.scores[mask] for run in figures])


@dataclass(frozen=True, slots=True)
class BaseDifference:
    """A variant minus the base in a category. tested: with the verdict, None where one of both has a single seed; unadjusted: without."""

    variant: str
    category: str
    unadjusted: Difference
    tested: TestedDifference | None

    @property
    def verdict(self) -> str:
        """In words."""
        return "one seed" if self.tested is None else _VERDICTS[self.tested.verdict]

    @property
    def cell(self) -> str:
        """Points, interval, verdict."""
        points, low, high = (_signed(100 * value) for value in (self.unadjusted.difference, *self.unadjusted.ci95))
        shown = self.tested is not None and self.tested.verdict != "not shown"
        return f"{points} ({low} to {high}) {f'**{self.verdict}**' if shown else self.verdict}"


def _signed(value: float) -> str:
    """With one digit and its sign; none for zero."""
    return f"{value:+.1f}" if abs(value) >= 0.05 else "0.0"


def variant_results(stored: StoredResults) -> dict[str, VariantResult]:
    """The results of the base and of every variant, by name."""
    return {name: VariantResult.of(name, records) for name, records in stored.valid.items()}


def base_differences(results: Mapping[str, VariantResult]) -> list[BaseDifference]:
    """Every variant with a finished run against the base, in every category that has questions about several images.

    Holm corrects over the variants that have a verdict, in each category for itself.
    """
    base = results[BASE]
    others = [result for name, result in results.items() if name != BASE and result.finished]
    differences: list[BaseDifference] = []
    for category in CATEGORIES if base.finished else ():
        answers = next(iter(base.finished.values())).answers
        mask = answers.mask(category)
        images = np.unique(answers.cluster_ids[mask], return_inverse=True)[1]
        if not mask.any() or images.max() + 1 < MIN_CLUSTERS:
            continue
        unadjusted = [compare_seeds(result.scores(category), base.scores(category), images) for result in others]
        several = [min(len(result.finished), len(base.finished)) > 1 for result in others]
        tested = iter(with_verdicts([difference for difference, is_tested in zip(unadjusted, several, strict=True) if is_tested]))
        differences += [
            BaseDifference(result.name, category, difference, next(tested) if is_tested else None)
            for result, difference, is_tested in zip(others, unadjusted, several, strict=True)
        ]
    return differences


def write_report(laboratory: Laboratory, stored: StoredResults, config_path: Path) -> str:
    """Write the report and its chart into the folder of the ablation; returns the text."""
    results = variant_results(stored)
    differences = base_differences(results)
    if differences:
        difference_chart(differences, laboratory.out / CHART_FILE)
    else:
        (laboratory.out / CHART_FILE).unlink(missing_ok=True)
    sections = [
        f"# Ablation: {config_path}",
        f"Written by `python tools/ablate.py --config {config_path}`; do not edit. What it is: [ablation](../ablation.md).",
        *_findings(results, differences),
        "## Accuracy and cost",
        _figures_table(results),
        _figures_note(results),
        *_difference_section(results, differences),
        "## Variants",
        _variant_table(laboratory),
        "## How it was judged",
        _method(laboratory),
        *_missing_sections(laboratory, results, stored),
    ]
    text = "\n\n".join(section for section in sections if section) + "\n"
    write_text(laboratory.out / REPORT_FILE, text)
    return text


def _findings(results: Mapping[str, VariantResult], differences: Sequence[BaseDifference]) -> Iterable[str]:
    """What is shown, in a sentence for each variant."""
    if not results[BASE].finished:
        yield "The base has no finished run yet, so nothing is compared."
        return
    tested = [difference for difference in differences if difference.tested is not None]
    shown = [difference for difference in tested if difference.tested is not None and difference.tested.verdict != "not shown"]
    by_verdict: dict[tuple[str, str], list[str]] = {}
    for difference in shown:
        points = f"{100 * abs(difference.unadjusted.difference):.1f} points in {difference.category}"
        by_verdict.setdefault((difference.variant, difference.verdict), []).append(points)
    lines = [f"- **{variant}** is {verdict} than the base by {', '.join(points)}." for (variant, verdict), points in by_verdict.items()]
    if silent := [name for name in dict.fromkeys(difference.variant for difference in tested) if name not in {d.variant for d in shown}]:
        lines.append(f"- Not shown to differ from the base in anything: {', '.join(silent)}.")
    if single := list(dict.fromkeys(d.variant for d in differences if d.tested is None)):
        lines.append(f"- Without a verdict, because there is one seed of them or of the base: {', '.join(single)}.")
    if lines:
        yield "\n".join(lines)


def _figures_table(results: Mapping[str, VariantResult]) -> str:
    header = ("variant", "seeds", *CATEGORIES, "other images", "tokens an image", "samples/s", "peak GiB", "minutes")
    return markdown(header, [_figures_row(result) for result in results.values()])


def _figures_row(result: VariantResult) -> Sequence[str]:
    runs = list(result.finished.values())
    seeds = ", ".join(map(str, result.finished)) or ("failed" if result.failed else "not run yet")
    if not runs:
        return (result.name, seeds, *[EMPTY_CELL] * (len(CATEGORIES) + 5))
    return (
        result.name,
        seeds + (f" ({len(result.failed)} failed)" if result.failed else ""),
        *(_mean_and_deviation([mean_score(run.answers, category) for run in runs]) for category in CATEGORIES),
        _mean_and_deviation([run.shuffled for run in runs]),
        format_number(fmean(run.tokens_per_image for run in runs)),
        format_number(fmean(run.samples_per_second for run in runs), 0),
        format_number(max(run.peak_memory_gib for run in runs), 2),
        format_number(fmean(result.seconds) / 60),
    )


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    """Mean in percent, with the standard deviation over seeds where there are several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return EMPTY_CELL
    return format_number(fmean(known)) + (f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else "")


def _figures_note(results: Mapping[str, VariantResult]) -> str:
    runs = [run for result in results.values() for run in result.finished.values()]
    if not runs:
        return ""
    training, answering = fmean(run.training_seconds for run in runs), fmean(run.answering_seconds for run in runs)
    starting = fmean(seconds for result in results.values() for seconds in result.seconds) - training - answering
    machines = ", ".join(sorted({f"{run.device} with {run.cores} cores" for run in runs}))
    counts = runs[0].answers
    numbers = ", ".join(f"{category} {int(counts.mask(category).sum()):,}" for category in CATEGORIES)
    return (
        f"VQA accuracy in percent, mean over the seeds ± standard deviation. Questions: {numbers}; about {len(counts.per_image):,} images. "
        "*Other images*: the seen questions, each asked about another image. *Samples/s*: training conversations, without the time of "
        "validation and saving; *peak* memory of a training process; *minutes* of a whole run, on average "
        f"{training:.0f} s of preparing and training, {answering:.0f} s of loading and asking, {starting:.0f} s of starting its process. "
        f"Machines: {machines}. Speeds of runs that shared a machine with other work are lower than they could be; those of different "
        "machines cannot be compared."
    )


def _difference_section(results: Mapping[str, VariantResult], differences: Sequence[BaseDifference]) -> Iterable[str]:
    if not differences:
        return
    categories = list(dict.fromkeys(difference.category for difference in differences))
    cells = {(difference.variant, difference.category): difference.cell for difference in differences}
    compared = [name for name in results if (name, categories[0]) in cells]
    rows = [(name, *(cells[name, category] for category in categories)) for name in compared]
    yield "## Difference to the base"
    yield markdown(("variant", *categories), rows)
    yield "Points of VQA accuracy, 95 % interval, verdict."
    yield f"![Difference to the base in every category, with 95 % intervals]({CHART_FILE})"


def _variant_table(laboratory: Laboratory) -> str:
    rows = [
        (name, variant.description, ", ".join(f"`{key}: {_yaml(value)}`" for key, value in variant.own.items()) or EMPTY_CELL)
        for name, variant in laboratory.variants.items()
    ]
    return markdown(("variant", "what it is", "overrides"), rows)


def _yaml(value: object) -> str:
    """A value as in the configuration."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


_METHOD = """\
- Every variant is `{base}` with the overrides that all share and its own, trained on the same synthetic data ({train:,} scenes of the \
demo's kind and {large_train:,} larger ones) with each seed, and asked the same questions greedily. No scene of the test is one of the \
training or of the pre-training, and no training scene has a combination of color and shape that *unseen* asks about.
{categories}
- Questions are of one of these kinds each: {kinds}.
- Differences are means over seeds of VQA accuracy, variant minus base, on the same questions. The interval and p are of Student's t over \
images *and* seeds: the variance over images (a jackknife, all questions about an image being one cluster) plus the variance between the \
seeds of each side over their number, with Satterthwaite's degrees of freedom. So a difference is shown only if it holds for other images \
and other seeds; three seeds leave few degrees of freedom, and small differences need more.
- **Better** or **worse**: the interval leaves 0 out and p, corrected by Holm's method over the variants of the column, is at most .05. \
With one seed on a side there is no verdict, and the interval is over images alone."""


def _method(laboratory: Laboratory) -> str:
    data = laboratory.ablation.data
    categories = "\n".join(f"- *{name}*: {description}." for name, description in CATEGORY_DESCRIPTIONS.items())
    return _METHOD.format(
        base=laboratory.ablation.base,
        train=data.train,
        large_train=data.large_train,
        categories=categories,
        kinds="; ".join(KINDS.values()),
    )


def _missing_sections(laboratory: Laboratory, results: Mapping[str, VariantResult], stored: StoredResults) -> Iterable[str]:
    failed = [f"- {name}, seed {seed}: {reason}" for name, result in results.items() for seed, reason in result.failed.items()]
    if failed:
        yield "## Failed runs"
        yield "\n".join(failed)
    unfinished = {
        name: [seed for seed in laboratory.ablation.seeds if seed not in result.finished and seed not in result.failed]
        for name, result in results.items()
    }
    if any(unfinished.values()):
        yield "## Not run yet"
        yield "\n".join(f"- {name}: seed {', '.join(map(str, seeds))}" for name, seeds in unfinished.items() if seeds)
    if stored.left_out:
        yield "## Results that are not used"
        yield "\n".join(f"- {line}" for line in stored.left_out)
