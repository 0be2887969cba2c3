"""How long an evaluation takes behind the answers: choices, statistics and the report, on questions and answers that are made up."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from answering.protocol import Answer, Candidate, Decoding, Description, Picture, Request
from benchmarks.preprocessing_speed import draw_raw_files
from dataset.build.merge import merge
from dataset.config import DataConfig, Split
from dataset.loading.sample_store import Store
from dataset.sample import uniform
from evaluation.config import EvalConfig
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import conclude
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import ask_everything

WORDS = ("yes", "no", "2", "red", "blue", "a dog", "two people", "on the left", "wood", "three")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of this process's own time: for choices, metrics and statistics, and for the report with its charts."""

    concluding: float
    reporting: float


def measure_report(folder: Path, questions: int, systems: int, candidates: int, size: tuple[int, int]) -> Spent:
    """Make up `questions` short questions about half as many pictures of `size`, and what `systems` systems answer; time the rest."""
    tuning = max(20, questions // 5)
    parts: list[tuple[Split, int]] = [("test", questions), ("validation", tuning)]
    sources = []
    for seed, (split, count) in enumerate(parts):
        drawn = draw_raw_files(folder / split, max(4, count // 2), 2 * count, size, seed)
        # Of what is drawn, half are VQA questions.
        sources.append(dataclasses.replace(drawn.sources[2], split=split, name=split))
    merge(DataConfig(sources=tuple(sources)), folder / "data")
    names = [f"system-{i}" for i in range(systems)]
    experiment = Experiment(
        name="benchmark",
        store=Store(folder / "data"),
        out=folder / "out",
        settings=EvalConfig(
            systems=tuple(CheckpointSystem(name=name, kind="checkpoint") for name in names),
            controls=("shuffled_pictures",),
        ),
        decoding=DecodingConfig(k=candidates),
        rerank=RerankConfig(tune=True, tune_limit=tuning),
    )
    answerers = {name: _MadeUp(i, candidates) for i, name in enumerate(names)}
    everything = ask_everything(
        experiment, lambda system: answerers[system.name], lambda _: answerers[names[0]], [NamedScorer("made up", _Liking())]
    )
    begin = time.process_time()
    outcome = conclude(experiment, everything)
    between = time.process_time()
    write_report(outcome, experiment)
    return Spent(between - begin, time.process_time() - between)


@dataclass(frozen=True, slots=True)
class _MadeUp:
    """Says what chance takes from WORDS, another chance for each system."""

    seed: int
    candidates: int

    @property
    def description(self) -> Description:
        return Description("checkpoint", {"path": f"made up {self.seed}"})

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """So many candidates for each request, none twice."""
        del decoding
        return [Answer(request.request_id, self._candidates(request), prompt=request.messages[-1].content) for request in requests]

    def _candidates(self, request: Request) -> tuple[Candidate, ...]:
        first = uniform(request.request_id, self.seed, 0, len(WORDS))
        texts = [WORDS[(first + place) % len(WORDS)] for place in range(min(self.candidates, len(WORDS)))]
        return tuple(Candidate(text, -0.4 * (place + 1), -0.2 * (place + 1), text) for place, text in enumerate(texts))

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """The first candidate."""
        yield self.answer([request], decoding)[0].first.text


class _Liking:
    """Likes what chance likes."""

    def score_batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Logits about as far apart as those of a CLIP."""
        return [
            [20.0 + uniform(f"{picture} {text}", 0, 0, 80) / 10 for text in group] for picture, group in zip(pictures, texts, strict=True)
        ]

    def cosine_batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The same as cosines."""
        return [[score / 100 for score in group] for group in self.score_batch(pictures, texts)]
