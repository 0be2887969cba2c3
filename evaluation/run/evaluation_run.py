"""The evaluation run: every system answers the same questions, then choices are made, and only then references are looked at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from answering.config import System
from answering.model_fingerprint import recorded, scorer_identity
from answering.question_types import guarded_kind
from answering.rerank.choose_answer import Plan
from answering.rerank.fitted_reranker import KnownPlan, save, settings_of
from atomic_io import write_json, write_text
from dataset.sample import Language
from evaluation.answer_selection import Weighting
from evaluation.calibration.rerank_fitting import tune
from evaluation.metrics.short_answers import METRIC
from evaluation.questions import Question, references
from evaluation.robustness.robustness_run import Condition, Robustness
from evaluation.run.evaluation_setup import Experiment, first_checkpoint
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import Everything, Load, Said, ask_everything
from evaluation.scoring.answer_scores import Cosines, References, caption_scores, score, score_lines
from evaluation.scoring.rerank_metrics import candidate_figures, rerank_figures
from evaluation.scoring.summary import SystemResult, summarise


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the reports show. `questions`: the short ones, in the order of every system's `short` in `results`."""

    summary: dict[str, Any]
    questions: list[Question]
    references: References
    results: dict[str, SystemResult]


def evaluate(experiment: Experiment, load: Load, load_untuned: Load, scorers: Sequence[NamedScorer] = ()) -> Outcome:
    """Ask, choose, score, in this process alone: `ask_everything`, then `conclude`."""
    return conclude(experiment, ask_everything(experiment, load, load_untuned, scorers))


def conclude(experiment: Experiment, everything: Everything) -> Outcome:
    """Choose and score; complete predictions/*.jsonl and write summary.json, scores/ and plans/ below `experiment.out`."""
    settings, questions, known, scorers = experiment.settings, everything.questions, everything.references, everything.scorers
    weighting = _taught(experiment, everything)
    corrupted = [said for answered in everything.corrupted.values() for said in answered.values()]
    for name, said in (*everything.systems.items(), *everything.validation.items()):
        said.choose(weighting.of(name), settings.seed, experiment.rerank.abstain_below)
    for said in (*everything.controls.values(), *corrupted):
        said.choose(weighting.common, settings.seed)
    if scorers or experiment.rerank.self_score:
        _save_plans(experiment, everything, weighting, scorers)

    subject = first_checkpoint(settings)
    short = [question for question in questions if question.short]
    results = {system.name: _result(system, everything, known, scorers) for system in settings.systems}
    summary = summarise(
        dataset=_dataset(experiment, questions),
        questions=short,
        systems=results,
        controls={name: (said.questions, score(said.predictions, known).scores["first"]) for name, said in everything.controls.items()},
        control_of=None if subject is None else subject.name,
        rerank=rerank_figures(experiment.rerank, weighting, scorers) if scorers or experiment.rerank.self_score else None,
        settings=settings,
    )
    kinds = [guarded_kind(question.text, question.request.language) for question in short]
    for name, result in results.items():
        left_alone = np.array([kind in weighting.of(name).guard for kind in kinds], dtype=bool)
        summary["systems"][name] |= candidate_figures(result.short, known, left_alone, experiment.rerank.abstain_below)
    write_json(experiment.out / "summary.json", summary)
    for name, result in results.items():
        lines = score_lines(questions, result.short, result.captions)
        write_text(experiment.out / "scores" / f"{name}.jsonl", "".join(line + "\n" for line in lines))
    return Outcome(summary, short, known, results)


def _result(system: System, everything: Everything, known: References, scorers: Sequence[NamedScorer]) -> SystemResult:
    said = everything.systems[system.name]
    pairs = list(zip(said.questions, said.predictions, strict=True))
    return SystemResult(
        kind=system.kind,
        model=said.predictions[0].model,
        decoding=next((prediction.decoding for question, prediction in pairs if question.short), said.predictions[0].decoding),
        errors=sum(prediction.error is not None for prediction in said.predictions),
        questions_per_second=said.questions_per_second,
        without_graphs=said.without_graphs,
        distinct_candidates=fmean(len(prediction.candidates) for prediction in said.predictions),
        short=score([prediction for question, prediction in pairs if question.short], known),
        captions=caption_scores(said.questions, said.predictions, known, _cosines(scorers)),
        robustness=_robustness(said, everything.corrupted.get(system.name, {}), known),
    )


def _cosines(scorers: Sequence[NamedScorer]) -> dict[Language, Cosines]:
    """By language, the first scorer that reads it."""
    return {language: one.scorer.cosine_batch for one in reversed(scorers) for language in one.languages}


def _robustness(clean: Said, corrupted: dict[Condition, Said], known: References) -> Robustness | None:
    """First answers to the questions that were asked again; None where none were."""
    if not corrupted:
        return None
    questions = next(iter(corrupted.values())).questions
    before = {prediction.sample_id: prediction for prediction in clean.predictions}
    accuracy = {condition: score(said.predictions, known).scores["first"][METRIC] for condition, said in corrupted.items()}
    return Robustness(questions, score([before[q.sample_id] for q in questions], known).scores["first"][METRIC], accuracy)


def _taught(experiment: Experiment, everything: Everything) -> Weighting:
    """The plans that the validation split teaches; the configured one where it was not asked. The test split has no part in it."""
    rerank, settings = experiment.rerank, experiment.settings
    if not everything.validation:
        return Weighting(Plan(rerank.weights, rerank.form, rerank.guard))
    answered = {name: (said.questions, said.predictions) for name, said in everything.validation.items()}
    return tune(answered, references(experiment.store, "validation"), rerank, settings.bootstrap, settings.seed)


def _save_plans(experiment: Experiment, everything: Everything, weighting: Weighting, scorers: Sequence[NamedScorer]) -> None:
    """What was used here, for those who ask the same systems about other pictures."""
    for name, said in everything.systems.items():
        known = KnownPlan(
            plan=weighting.of(name),
            model=said.predictions[0].model,
            decoding=recorded(experiment.decoding),
            scorers={scorer.choice: scorer_identity(scorer.name, scorer.wording) for scorer in scorers},
            settings=settings_of(experiment.rerank),
            backgrounds={scorer.choice: scorer.bank.mean().tolist() for scorer in scorers if scorer.bank is not None},
        )
        save(experiment.out / "plans" / f"{name}.json", known)


def _dataset(experiment: Experiment, questions: Sequence[Question]) -> dict[str, Any]:
    tasks = Counter(question.request.task for question in questions)
    images = {image for question in questions for image in question.image_ids}
    return {
        "name": experiment.name,
        "split": experiment.settings.split,
        "questions": len(questions),
        "images": len(images),
        "by_task": dict(tasks),
    }
