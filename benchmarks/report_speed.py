"""Speed of an evaluation after the answers: selection, statistics and report, on synthetic questions and random answers."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from answering.protocol import Answer, Candidate, Decoding, Description, ImageInput, Request
from benchmarks.preprocessing_speed import write_synthetic_sources
from dataset.build.merge import merge
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.sample import hash_to_index
from dataset.source_base import Split
from evaluation.config import EvalConfig
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import score_evaluation
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import run_all_systems

ANSWERS = ("yes", "no", "2", "red", "blue", "a dog", "two people", "on the left", "wood", "three")


@dataclass(frozen=True, slots=True)
class ReportTimings:
    """CPU seconds of this process: for selection, metrics and statistics, and for the report with its charts."""

    scoring_seconds: float
    report_seconds: float


def measure_report(folder: Path, questions: int, systems: int, candidates: int, size: tuple[int, int]) -> ReportTimings:
    """Generate questions and random answers, and measure the rest of an evaluation.

    Args:
        folder: empty folder.
        questions: number of short questions, about half as many images.
        systems: number of systems.
        candidates: candidate answers per question.
        size: width and height of the images in pixels.
    """
    tuning = max(20, questions // 5)
    split_sizes: list[tuple[Split, int]] = [("test", questions), ("validation", tuning)]
    sources = []
    for seed, (split, count) in enumerate(split_sizes):
        raw_files = write_synthetic_sources(folder / split, max(4, count // 2), 2 * count, size, seed)
        # Half of the records are VQA questions.
        sources.append(dataclasses.replace(raw_files.sources[2], split=split, name=split))
    merge(DataConfig(sources=tuple(sources)), folder / "data")
    names = [f"system-{i}" for i in range(systems)]
    experiment = Experiment(
        name="benchmark",
        store=SampleStore(folder / "data"),
        out=folder / "out",
        settings=EvalConfig(
            systems=tuple(CheckpointSystem(name=name, kind="checkpoint") for name in names),
            controls=("shuffled_images",),
        ),
        decoding=DecodingConfig(num_candidates=candidates),
        rerank=RerankConfig(tune=True, tune_limit=tuning),
    )
    answerers = {name: _RandomAnswerer(i, candidates) for i, name in enumerate(names)}
    evaluation_run = run_all_systems(
        experiment, lambda system: answerers[system.name], lambda _: answerers[names[0]], [NamedScorer("made up", _RandomScorer())]
    )
    start = time.process_time()
    evaluation_result = score_evaluation(experiment, evaluation_run)
    scoring_end = time.process_time()
    write_report(evaluation_result, experiment)
    return ReportTimings(scoring_end - start, time.process_time() - scoring_end)


@dataclass(frozen=True, slots=True)
class _RandomAnswerer:
    """Answers with pseudo-random entries of ANSWERS, which depend on the seed of the system."""

    seed: int
    candidates: int

    @property
    def description(self) -> Description:
        return Description("checkpoint", {"path": f"made up {self.seed}"})

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """Distinct candidates for each request."""
        del decoding
        return [Answer(request.request_id, self._candidates(request), prompt=request.messages[-1].content) for request in requests]

    def _candidates(self, request: Request) -> tuple[Candidate, ...]:
        first = hash_to_index(request.request_id, self.seed, 0, len(ANSWERS))
        texts = [ANSWERS[(first + index) % len(ANSWERS)] for index in range(min(self.candidates, len(ANSWERS)))]
        return tuple(Candidate(text, -0.4 * (index + 1), -0.2 * (index + 1), text) for index, text in enumerate(texts))

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """The first candidate."""
        yield self.answer([request], decoding)[0].first.text


class _RandomScorer:
    """Pseudo-random scores."""

    def score_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Logits with about the spread of CLIP logits."""
        return [
            [20.0 + hash_to_index(f"{image} {text}", 0, 0, 80) / 10 for text in group] for image, group in zip(images, texts, strict=True)
        ]

    def cosine_batch(self, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The logits as cosine similarities."""
        return [[score / 100 for score in group] for group in self.score_batch(images, texts)]
