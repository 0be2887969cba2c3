"""Carry out the runs of an ablation, one after the other: those without a valid result, seed by seed.

In: an ablation, a folder of results. Out: a file for each run in `<out>/runs`, and the report. What was finished before, or before it was
killed, is not done again.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from benchmarks.ablation.ablation_data import prepare_data
from benchmarks.ablation.config import BASE, AblationConfig, NamedVariant, all_variants
from benchmarks.ablation.run_records import RunFigures, RunRecord, mean_score, read_record, settings_digest
from benchmarks.ablation.variant_training import Job, run_in_process
from errors import TesseraError, UsageError
from file_lock import folder_lock

RUNS_FOLDER = "runs"
"""Folder of the results of single runs, in the folder of the report."""


@dataclass(frozen=True, slots=True)
class Laboratory:
    """An ablation and where its files are.

    Args:
        ablation: what is tried.
        variants: the base and the variants, by name.
        settings: hash of the settings of each variant, by its name.
        out: folder of the report and of the results.
        work: folder of the data and of checkpoints while a run is in progress.
    """

    ablation: AblationConfig
    variants: Mapping[str, NamedVariant]
    settings: Mapping[str, str]
    out: Path
    work: Path

    @classmethod
    def of(cls, ablation: AblationConfig, out: Path, work: Path) -> "Laboratory":
        """For the variants of an ablation."""
        variants = all_variants(ablation)
        settings = {name: settings_digest(variant, ablation.data) for name, variant in variants.items()}
        return cls(ablation, variants, settings, out, work)


@dataclass(frozen=True, slots=True)
class StoredResults:
    """The results in a folder: those that hold for the present settings and data, by variant and seed, and why others do not."""

    valid: dict[str, dict[int, RunRecord]]
    left_out: list[str]


def stored_results(laboratory: Laboratory, data_digest: str | None) -> StoredResults:
    """Read the results of all runs.

    data_digest: of the present data; None takes those of the base, or of the first variant without one, for the present data.
    Raises TesseraError for a file that is no result.
    """
    records = {path: read_record(path) for path in sorted((laboratory.out / RUNS_FOLDER).glob("*.json"))}
    left_out = []
    current: dict[Path, RunRecord] = {}
    for path, record in records.items():
        if record.variant not in laboratory.settings:
            left_out.append(f"{path.name}: the ablation has no variant {record.variant} now")
        elif record.settings != laboratory.settings[record.variant]:
            left_out.append(f"{path.name}: made with other settings of {record.variant}")
        else:
            current[path] = record
    by_name = {name: [record for record in current.values() if record.variant == name] for name in laboratory.variants}
    first = next((records[0] for records in by_name.values() if records), None)
    digest = data_digest or (first.data if first else None)
    valid: dict[str, dict[int, RunRecord]] = {name: {} for name in laboratory.variants}
    for path, record in current.items():
        if record.data != digest:
            left_out.append(f"{path.name}: made with other data")
        else:
            valid[record.variant][record.seed] = record
    return StoredResults(valid, left_out)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs are to be done: names of variants, seeds, and whether those that failed are tried again."""

    variants: Collection[str]
    seeds: Sequence[int]
    retry_failed: bool = False


def select(laboratory: Laboratory, variants: Sequence[str], seeds: Sequence[int], retry_failed: bool) -> Selection:
    """The chosen variants with the base, and seeds; all of them where none are chosen. Raises UsageError for an unknown variant."""
    if unknown := [name for name in variants if name not in laboratory.variants]:
        raise UsageError(f"--variants {unknown[0]}: there is no such variant; expected some of {', '.join(laboratory.variants)}")
    chosen = {BASE, *variants} if variants else set(laboratory.variants)
    return Selection(chosen, tuple(dict.fromkeys(seeds)) or laboratory.ablation.seeds, retry_failed)


def carry_out(laboratory: Laboratory, selection: Selection, run: Callable[[Job], RunFigures] = run_in_process) -> StoredResults:
    """Do all selected runs that have no valid result, and return the results.

    A run that fails is a result with the reason, and the others go on. Raises UsageError when another process works in the folder.

    run: carries out a single run.
    """
    with folder_lock(laboratory.out, ".ablation.lock", "running an ablation"):
        print("data: synthetic scenes", flush=True)
        data = prepare_data(laboratory.ablation.data, laboratory.work)
        stored = stored_results(laboratory, data.digest)
        for line in stored.left_out:
            print(f"not used: {line}", flush=True)
        pending = _pending(laboratory, selection, stored)
        known = [record.seconds for by_seed in stored.valid.values() for record in by_seed.values()]
        print(f"{len(pending)} runs to do, {sum(map(len, stored.valid.values()))} done before{_time_left(known, len(pending))}", flush=True)
        for number, (variant, seed) in enumerate(pending, start=1):
            title = f"run {number}/{len(pending)}, {variant.name} with seed {seed}"
            print(f"\n{title}", flush=True)
            job = Job(variant, seed, data, laboratory.work / "runs" / f"{variant.name}-seed{seed}")
            record = _record(job, laboratory.settings[variant.name], run)
            record.write(laboratory.out / RUNS_FOLDER)
            known.append(record.seconds)
            print(f"{title}: {_outcome(record)}{_time_left(known, len(pending) - number)}", flush=True)
        return stored_results(laboratory, data.digest)


def _pending(laboratory: Laboratory, selection: Selection, stored: StoredResults) -> list[tuple[NamedVariant, int]]:
    """The runs to do: all variants with the first seed, then with the next, so that an early end leaves a table without gaps."""
    return [
        (variant, seed)
        for seed in selection.seeds
        for name, variant in laboratory.variants.items()
        if name in selection.variants
        and ((record := stored.valid[name].get(seed)) is None or (selection.retry_failed and record.error is not None))
    ]


def _record(job: Job, settings: str, run: Callable[[Job], RunFigures]) -> RunRecord:
    """Carry out a run and make its record, also of one that fails."""
    started = time.monotonic()
    figures, error = None, None
    try:
        figures = run(job)
    except TesseraError as failure:
        error = str(failure)
    return RunRecord(job.variant.name, job.seed, settings, job.data.digest, job.variant.own, time.monotonic() - started, figures, error)


def _outcome(record: RunRecord) -> str:
    taken = timedelta(seconds=round(record.seconds))
    if record.figures is None:
        return f"failed after {taken}: {record.error}"
    accuracy = mean_score(record.figures.answers, "accuracy")
    return f"accuracy {100 * (accuracy or 0.0):.1f} %, {record.figures.samples_per_second:.0f} samples/s, {taken}"


def _time_left(known: Sequence[float], runs: int) -> str:
    """An estimate from the runs that are known; empty where there is none."""
    return f", about {timedelta(seconds=round(fmean(known) * runs))} left" if known and runs else ""
