"""Run all systems, one in memory at a time: each answers the questions, the validation questions and its control runs."""

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from answering.config import System
from answering.protocol import Answerer
from answering.rerank.choose_answer import chosen_text
from errors import UsageError
from evaluation.prediction_files import Prediction
from evaluation.questions import Question, choose, references, with_shuffled_images
from evaluation.robustness.robustness_run import CorruptionCondition, corruption_conditions, corruption_questions, with_corrupted_images
from evaluation.run.background_images import with_background_images
from evaluation.run.evaluation_setup import Experiment, check_experiment, first_checkpoint
from evaluation.run.question_runner import NamedScorer, QuestionRunner, chunks
from evaluation.scoring.answer_scores import References, answer_accuracy
from process_group import ProcessGroup
from renamed_keys import EARLIER_FILE_NAMES

SystemLoader = Callable[[System], Answerer]
"""Loads a system."""


@dataclass(slots=True)
class SystemRun:
    """Predictions of one system for one list of questions.

    Args:
        path: the predictions file
        questions: the questions
        predictions: one prediction per question, in the same order
        questions_per_second: speed of answering; None if nothing was measured
        cuda_graphs_error: why decoding ran without CUDA graphs; None if it did not have to
    """

    path: Path
    questions: list[Question]
    predictions: list[Prediction]
    questions_per_second: float | None
    cuda_graphs_error: str | None = None


@dataclass(frozen=True, slots=True)
class _SystemRunner:
    """Has systems answer questions. References are used only for the running accuracy on the progress line."""

    experiment: Experiment
    runner: QuestionRunner

    def run_control(self, answerer: Answerer, questions: list[Question], reference_answers: References, name: str) -> SystemRun:
        """Answer the questions of a control run. Only first candidates are evaluated, so no scorer runs."""
        runner = QuestionRunner((), False, self.runner.process_group)
        return _SystemRunner(self.experiment, runner).answer_questions(answerer, questions, reference_answers, name)

    def answer_questions(self, answerer: Answerer, questions: list[Question], reference_answers: References, file: str) -> SystemRun:
        """Answer the questions and score the candidates; predictions go to predictions/<file>.jsonl."""
        experiment = self.experiment
        path = experiment.out / "predictions" / f"{file}.jsonl"
        _take_over_earlier_name(path)
        short = {question.sample_id for question in questions if question.short}

        def first_accuracy(prediction: Prediction) -> float | None:
            return (
                answer_accuracy(prediction, chosen_text(prediction.candidates, 0), reference_answers)
                if prediction.sample_id in short
                else None
            )

        all_chunks = chunks(questions, experiment.decoding, experiment.settings.description_tokens)
        output = self.runner.answer(answerer, all_chunks, path, file, first_accuracy)
        return SystemRun(path, questions, output.predictions, output.questions_per_second, output.cuda_graphs_error)


def _take_over_earlier_name(path: Path) -> None:
    """Rename a predictions file of schema version 1, its timing and rank files, to today's name. Safe to call on every rank."""
    if (earlier := EARLIER_FILE_NAMES.get(path.stem)) is None:
        return
    for file in path.parent.glob(f"{earlier}.*"):
        target = file.with_name(path.stem + file.name.removeprefix(earlier))
        if not target.exists():
            # Another rank may have renamed it just now.
            with contextlib.suppress(FileNotFoundError):
                file.rename(target)


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """All predictions of an evaluation, before answers are chosen.

    Args:
        questions: the questions
        references: reference answers by sample id
        scorers: scorers of the candidates, with their background images
        systems: system -> predictions for the questions
        controls: control -> predictions of the control run
        validation: system -> predictions for the questions of the validation split
        corrupted: system -> corruption -> predictions on corrupted images
    """

    questions: list[Question]
    references: References
    scorers: Sequence[NamedScorer]
    systems: dict[str, SystemRun] = field(default_factory=dict)
    controls: dict[str, SystemRun] = field(default_factory=dict)
    validation: dict[str, SystemRun] = field(default_factory=dict)
    corrupted: dict[str, dict[CorruptionCondition, SystemRun]] = field(default_factory=dict)


def run_all_systems(
    experiment: Experiment,
    load: SystemLoader,
    load_untuned: SystemLoader,
    scorers: Sequence[NamedScorer] = (),
    process_group: ProcessGroup | None = None,
) -> EvaluationRun:
    """Have all systems answer all their questions, one system in memory at a time. Predictions files go to `experiment.out`.

    Args:
        experiment: settings and data
        load: loads a system
        load_untuned: loads a system with an untrained connector
        scorers: scorers of the candidates
        process_group: ranks that share the questions; every rank gets all predictions

    Raises:
        UsageError: settings conflict; raised before any system is loaded
    """
    check_experiment(experiment, scorers)
    settings, store = experiment.settings, experiment.store
    questions, reference_answers = choose(store, settings.split, settings.limit), references(store, settings.split)
    evaluation_run = EvaluationRun(
        questions, reference_answers, with_background_images(scorers, store, experiment.rerank.background_images)
    )
    question_runner = QuestionRunner(evaluation_run.scorers, experiment.rerank.self_evaluation, process_group or ProcessGroup())
    runner = _SystemRunner(experiment, question_runner)
    short = [question for question in questions if question.short]
    if settings.controls and not short:
        raise UsageError(f"eval.controls: control runs need questions with short answers; the split '{settings.split}' has none")
    if settings.corruptions and not corruption_questions(short, settings):
        raise UsageError(f"eval.corruptions: corruptions need short questions with images; the split '{settings.split}' has none")
    control_system = first_checkpoint(settings)
    tuning_questions = _validation_questions(experiment) if experiment.rerank.tune else []
    tuning_references = references(store, "validation") if tuning_questions else {}
    for system in settings.systems:
        answerer = load(system)
        evaluation_run.systems[system.name] = runner.answer_questions(answerer, questions, reference_answers, system.name)
        if tuning_questions:
            evaluation_run.validation[system.name] = runner.answer_questions(
                answerer, tuning_questions, tuning_references, f"validation/{system.name}"
            )
        if system is control_system and "shuffled_images" in settings.controls:
            shuffled = with_shuffled_images(short, settings.seed)
            evaluation_run.controls["shuffled_images"] = runner.run_control(
                answerer, shuffled, reference_answers, "controls/shuffled_images"
            )
        for condition in corruption_conditions(settings):
            with with_corrupted_images(corruption_questions(short, settings), condition) as corrupted_questions:
                system_run = runner.run_control(
                    answerer, corrupted_questions, reference_answers, f"corrupted/{system.name}/{condition[0]}-{condition[1]}"
                )
            evaluation_run.corrupted.setdefault(system.name, {})[condition] = system_run
        del answerer
        _free_memory()
    if control_system is not None and "untuned" in settings.controls:
        evaluation_run.controls["untuned"] = runner.run_control(load_untuned(control_system), short, reference_answers, "controls/untuned")
        _free_memory()
    return evaluation_run


def _free_memory() -> None:
    """Free the memory of a system that is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _validation_questions(experiment: Experiment) -> list[Question]:
    """Short questions of the validation split, at most rerank.tune_limit. Raises UsageError if there are none."""
    rerank = experiment.rerank
    limit = rerank.tune_limit if rerank.tune_limit is not None else experiment.settings.limit
    short = [question for question in choose(experiment.store, "validation", None) if question.short][:limit]
    if not short:
        raise UsageError("rerank.tune: the validation split has no questions with short answers")
    return short
