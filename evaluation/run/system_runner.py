"""Run all systems, one in memory at a time: each answers the questions, the validation questions and its control runs."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from answering.config import System
from answering.model_fingerprint import digest
from answering.protocol import Answerer
from answering.rerank.choose_answer import chosen_text
from answering.rerank.image_text_scores import BackgroundImages, ImageTextModelWithPriors
from dataset.loading.image_io import ImageError, open_image
from dataset.loading.sample_store import ImageRow, SampleStore
from errors import UsageError
from evaluation.prediction_files import Prediction
from evaluation.questions import Question, choose, references, with_shuffled_images
from evaluation.robustness import CorruptionCondition, corruption_conditions, corruption_questions, with_corrupted_images
from evaluation.run.evaluation_setup import Experiment, check_experiment, first_checkpoint
from evaluation.run.question_runner import NamedScorer, QuestionRunner, SystemRun, chunks
from evaluation.scoring.answer_scores import References, answer_accuracy
from process_group import ProcessGroup
from renamed_keys import EARLIER_FILE_NAMES

SystemLoader = Callable[[System], Answerer]
"""Loads a system."""
MIN_BACKGROUND_IMAGES = 2
"""Smallest number of background images for which priors are computed."""


def _answer_questions(
    experiment: Experiment, runner: QuestionRunner, answerer: Answerer, questions: list[Question], reference_answers: References, file: str
) -> SystemRun:
    """Answer the questions and score the candidates; predictions go to predictions/<file>.jsonl.

    The references are used only for the running accuracy on the progress line.
    """
    path = experiment.out / "predictions" / f"{file}.jsonl"
    _take_over_earlier_name(path)
    short = {question.sample_id for question in questions if question.short}

    def first_accuracy(prediction: Prediction) -> float | None:
        answer = chosen_text(prediction.candidates, 0)
        return answer_accuracy(prediction, answer, reference_answers) if prediction.sample_id in short else None

    all_chunks = chunks(questions, experiment.decoding, experiment.settings.description_tokens)
    return runner.answer(answerer, all_chunks, path, file, first_accuracy)


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
    """All predictions of an evaluation, before answers are chosen: of systems, control runs, systems on the validation split, and systems
    on corrupted images. References are by sample id; scorers have their background images.
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
    group = process_group or ProcessGroup()
    answer = partial(_answer_questions, experiment, QuestionRunner(evaluation_run.scorers, experiment.rerank.self_evaluation, group))
    # Only first candidates of control runs are evaluated, so no scorer runs.
    answer_control = partial(_answer_questions, experiment, QuestionRunner((), False, group))
    short = [question for question in questions if question.short]
    controlled = [question for question in questions if question.short or question.asks_for_box]
    if settings.controls and not controlled:
        raise UsageError(f"eval.controls: control runs need questions with short answers or boxes; the split '{settings.split}' has none")
    if settings.corruptions and not corruption_questions(short, settings):
        raise UsageError(f"eval.corruptions: corruptions need short questions with images; the split '{settings.split}' has none")
    control_system = first_checkpoint(settings)
    tuning_questions = _validation_questions(experiment) if experiment.rerank.tune else []
    tuning_references = references(store, "validation") if tuning_questions else {}
    for system in settings.systems:
        name, answerer = system.name, load(system)
        evaluation_run.systems[name] = answer(answerer, questions, reference_answers, name)
        if tuning_questions:
            evaluation_run.validation[name] = answer(answerer, tuning_questions, tuning_references, f"validation/{name}")
        if system is control_system and "shuffled_images" in settings.controls:
            shuffled = with_shuffled_images(controlled, settings.seed)
            evaluation_run.controls["shuffled_images"] = answer_control(answerer, shuffled, reference_answers, "controls/shuffled_images")
        for kind, strength in corruption_conditions(settings):
            with with_corrupted_images(corruption_questions(short, settings), (kind, strength)) as corrupted_questions:
                system_run = answer_control(answerer, corrupted_questions, reference_answers, f"corrupted/{name}/{kind}-{strength}")
            evaluation_run.corrupted.setdefault(name, {})[kind, strength] = system_run
        del answerer
        _free_memory()
    if control_system is not None and "untuned" in settings.controls:
        evaluation_run.controls["untuned"] = answer_control(load_untuned(control_system), controlled, reference_answers, "controls/untuned")
        _free_memory()
    return evaluation_run


def with_background_images(scorers: Sequence[NamedScorer], store: SampleStore, size: int) -> list[NamedScorer]:
    """Add at most `size` background images to the scorers that support priors; other scorers are returned unchanged.

    A text's mean score on them is its prior. The images are selected by a hash of their content, from all splits; unreadable ones are
    skipped. No reference is read, and a question's own images are excluded from its prior.
    """
    rows = list(islice(filter(_is_readable, sorted(store.images(), key=lambda row: digest(row.sha256))), size))
    if len(rows) < MIN_BACKGROUND_IMAGES:
        return list(scorers)
    paths, hashes = [row.path for row in rows], tuple(row.sha256 for row in rows)
    return [
        dataclasses.replace(scorer, background_images=BackgroundImages(scorer.scorer.features(paths), hashes))
        if isinstance(scorer.scorer, ImageTextModelWithPriors)
        else scorer
        for scorer in scorers
    ]


def _is_readable(row: ImageRow) -> bool:
    try:
        open_image(row.path)
    except ImageError:
        return False
    return True


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
