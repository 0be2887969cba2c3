"""The evaluation run: every system answers the same questions, then choices are made, and only then references are looked at."""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig, System
from answering.identity import recorded, scorer_identity
from answering.plan import KnownPlan, save, settings_of
from answering.protocol import Answerer
from answering.rerank import Plan, chosen_text
from atomic import write_json, write_text
from dataset.store import Store
from errors import UsageError
from evaluation import predictions as files
from evaluation.asking import NamedScorer, ask, chunks
from evaluation.bank import with_banks
from evaluation.bars import check_bars
from evaluation.choosing import Weighting, chosen
from evaluation.config import EvalConfig
from evaluation.groups import check_groups
from evaluation.predictions import Prediction
from evaluation.questions import Question, choose, references, with_other_pictures
from evaluation.rerank_figures import candidate_figures, rerank_figures
from evaluation.robustness import Condition, Robustness, asked_again, conditions, on_corrupted_pictures
from evaluation.scoring import References, caption_scores, right, score, score_lines
from evaluation.summary import METRIC, SystemResult, summarise
from evaluation.tuning import tune

Load = Callable[[System], Answerer]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is evaluated, how, and the folder `out` that takes the results."""

    name: str
    store: Store
    out: Path
    settings: EvalConfig
    decoding: DecodingConfig
    rerank: RerankConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the reports show. `questions`: the short ones, in the order of every system's `short` in `results`."""

    summary: dict[str, Any]
    questions: list[Question]
    references: References
    results: dict[str, SystemResult]


def evaluate(experiment: Experiment, load: Load, load_untuned: Load, scorers: Sequence[NamedScorer] = ()) -> Outcome:
    """Ask, choose, score; write predictions/*.jsonl and summary.json below `experiment.out`.

    load makes a system ready to answer; one at a time is held. load_untuned does the same with a fresh projector.
    Raises UsageError for settings that do not fit together, before any system is loaded.
    """
    _check(experiment, scorers)
    settings, store = experiment.settings, experiment.store
    questions = choose(store, settings.split, settings.limit)
    known = references(store, settings.split)
    scorers = with_banks(scorers, store, experiment.rerank.bank)
    everything = _ask_all(experiment, questions, known, load, load_untuned, scorers)

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
    for name, result in results.items():
        summary["systems"][name] |= candidate_figures(result.short, known, experiment.rerank.abstain_below)
    write_json(experiment.out / "summary.json", summary)
    for name, result in results.items():
        lines = score_lines(questions, result.short, result.captions)
        write_text(experiment.out / "scores" / f"{name}.jsonl", "".join(line + "\n" for line in lines))
    return Outcome(summary, short, known, results)


@dataclass(slots=True)
class _Said:
    """What a system said to some questions, and the file that it stands in."""

    path: Path
    questions: list[Question]
    predictions: list[Prediction]
    questions_per_second: float | None
    without_graphs: str | None = None

    def choose(self, plan: Plan, seed: int, abstain_below: float | None = None) -> None:
        """Make the choices, and write the file as a whole."""
        self.predictions = chosen(self.questions, self.predictions, plan, seed, abstain_below)
        files.write(self.path, self.predictions)


@dataclass(frozen=True, slots=True)
class _Interview:
    """Asks one system after the other. References only make the running accuracy that is shown."""

    experiment: Experiment
    scorers: Sequence[NamedScorer]
    judging: bool

    def control(self, answerer: Answerer, questions: list[Question], known: References, name: str) -> _Said:
        """Only the first answers of a control are looked at, so nothing is scored."""
        return _Interview(self.experiment, (), False).ask(answerer, questions, known, name)

    def ask(self, answerer: Answerer, questions: list[Question], known: References, file: str) -> _Said:
        experiment = self.experiment
        path = experiment.out / "predictions" / f"{file}.jsonl"
        short = {question.sample_id for question in questions if question.short}

        def first(prediction: Prediction) -> float | None:
            return right(prediction, chosen_text(prediction.candidates, 0), known) if prediction.sample_id in short else None

        plan = chunks(questions, experiment.decoding, experiment.settings.description_tokens)
        asked = ask(answerer, self.scorers, self.judging, plan, path, file, first)
        return _Said(path, questions, asked.predictions, asked.questions_per_second, asked.without_graphs)


@dataclass(frozen=True, slots=True)
class _Everything:
    """What was said by the systems, by the controls, by the systems to the questions of the validation split, and by the systems
    about corrupted pictures."""

    systems: dict[str, _Said]
    controls: dict[str, _Said]
    validation: dict[str, _Said]
    corrupted: dict[str, dict[Condition, _Said]]


def _ask_all(
    experiment: Experiment,
    questions: list[Question],
    known: References,
    load: Load,
    load_untuned: Load,
    scorers: Sequence[NamedScorer],
) -> _Everything:
    """One system is in memory at a time; while it is, it gets all that it is asked."""
    settings, store = experiment.settings, experiment.store
    interview = _Interview(experiment, scorers, experiment.rerank.self_score)
    everything = _Everything({}, {}, {}, {})
    short = [question for question in questions if question.short]
    if settings.controls and not short:
        raise UsageError(f"eval.controls: they need questions with short answers; the split '{settings.split}' has none")
    if settings.corruptions and not asked_again(short, settings):
        raise UsageError(f"eval.corruptions: they need short questions about pictures; the split '{settings.split}' has none")
    subject = first_checkpoint(settings)
    tuning = _validation_questions(experiment) if experiment.rerank.tune else []
    tuning_references = references(store, "validation") if tuning else {}
    for system in settings.systems:
        answerer = load(system)
        everything.systems[system.name] = interview.ask(answerer, questions, known, system.name)
        if tuning:
            everything.validation[system.name] = interview.ask(answerer, tuning, tuning_references, f"validation/{system.name}")
        if system is subject and "shuffled_pictures" in settings.controls:
            others = with_other_pictures(short, settings.seed)
            everything.controls["shuffled_pictures"] = interview.control(answerer, others, known, "controls/shuffled_pictures")
        for condition in conditions(settings):
            with on_corrupted_pictures(asked_again(short, settings), condition) as worse:
                said = interview.control(answerer, worse, known, f"corrupted/{system.name}/{condition[0]}-{condition[1]}")
            everything.corrupted.setdefault(system.name, {})[condition] = said
        del answerer
        _free()
    if subject is not None and "untuned" in settings.controls:
        everything.controls["untuned"] = interview.control(load_untuned(subject), short, known, "controls/untuned")
        _free()
    return everything


def first_checkpoint(settings: EvalConfig) -> CheckpointSystem | None:
    """The system that the controls are run for."""
    return next((system for system in settings.systems if isinstance(system, CheckpointSystem)), None)


def _free() -> None:
    """Give back the memory of a system that is no longer referred to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _result(system: System, everything: _Everything, known: References, scorers: Sequence[NamedScorer]) -> SystemResult:
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
        captions=caption_scores(said.questions, said.predictions, known, scorers[0].scorer.cosine_batch if scorers else None),
        robustness=_robustness(said, everything.corrupted.get(system.name, {}), known),
    )


def _robustness(clean: _Said, corrupted: dict[Condition, _Said], known: References) -> Robustness | None:
    """First answers to the questions that were asked again; None where none were."""
    if not corrupted:
        return None
    questions = next(iter(corrupted.values())).questions
    before = {prediction.sample_id: prediction for prediction in clean.predictions}
    accuracy = {condition: score(said.predictions, known).scores["first"][METRIC] for condition, said in corrupted.items()}
    return Robustness(questions, score([before[q.sample_id] for q in questions], known).scores["first"][METRIC], accuracy)


def _taught(experiment: Experiment, everything: _Everything) -> Weighting:
    """The plans that the validation split teaches; the configured one where it was not asked. The test split has no part in it."""
    rerank, settings = experiment.rerank, experiment.settings
    if not everything.validation:
        return Weighting(Plan(rerank.weights, rerank.form, rerank.guard))
    answered = {name: (said.questions, said.predictions) for name, said in everything.validation.items()}
    return tune(answered, references(experiment.store, "validation"), rerank, settings.bootstrap, settings.seed)


def _validation_questions(experiment: Experiment) -> list[Question]:
    """Short questions of the validation split. Raises UsageError when it has none."""
    rerank = experiment.rerank
    limit = rerank.tune_limit if rerank.tune_limit is not None else experiment.settings.limit
    short = [question for question in choose(experiment.store, "validation", None) if question.short][:limit]
    if not short:
        raise UsageError("rerank.tune: the validation split has no questions with short answers")
    return short


def _save_plans(experiment: Experiment, everything: _Everything, weighting: Weighting, scorers: Sequence[NamedScorer]) -> None:
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


def _check(experiment: Experiment, scorers: Sequence[NamedScorer]) -> None:
    settings, rerank = experiment.settings, experiment.rerank
    names = [system.name for system in settings.systems]
    if not names:
        raise UsageError("eval.systems: empty; name at least one system, or give --checkpoints")
    if doubled := sorted(name for name, times in Counter(names).items() if times > 1):
        raise UsageError(f"eval.systems: {', '.join(doubled)} stands there more than once; each system needs a name of its own")
    if settings.controls and first_checkpoint(settings) is None:
        raise UsageError("eval.controls: they are runs of a checkpoint, and no system has kind: checkpoint")
    check_bars(settings)
    check_groups(settings)
    if rerank.tune and not scorers and not rerank.self_score:
        raise UsageError("rerank.tune: there is nothing to weigh without rerank.clip, rerank.scorers or rerank.self_score")
    if rerank.abstain_below is not None and not rerank.tune:
        raise UsageError("rerank.abstain_below: what is credible is learned on the validation split; set rerank.tune to true")
    if rerank.form == "prior_corrected" and not rerank.bank:
        raise UsageError("rerank.form: prior_corrected needs unrelated pictures; set rerank.bank to their number")
    if rerank.tune and settings.split == "validation":
        raise UsageError("rerank.tune: weights are chosen on the validation split, so eval.split must be another one")
    if rerank.weights.likelihood + rerank.weights.clip == 0:
        raise UsageError("rerank.weights: both are zero; at least one must be positive")
