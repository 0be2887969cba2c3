"""Who is asked what: every system the questions, those of the validation split, and its controls, as long as it is in memory."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from answering.config import System
from answering.protocol import Answerer
from answering.rerank.choose_answer import Plan, chosen_text
from errors import UsageError
from evaluation import prediction_files as files
from evaluation.answer_selection import chosen
from evaluation.prediction_files import Prediction
from evaluation.questions import Question, choose, references, with_other_pictures
from evaluation.robustness.robustness_run import Condition, asked_again, conditions, on_corrupted_pictures
from evaluation.run.background_images import with_banks
from evaluation.run.evaluation_setup import Experiment, check, first_checkpoint
from evaluation.run.question_runner import NamedScorer, ask, chunks
from evaluation.scoring.answer_scores import References, right
from process_group import Share

Load = Callable[[System], Answerer]


@dataclass(slots=True)
class Said:
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
    share: Share

    def control(self, answerer: Answerer, questions: list[Question], known: References, name: str) -> Said:
        """Only the first answers of a control are looked at, so nothing is scored."""
        return _Interview(self.experiment, (), False, self.share).ask(answerer, questions, known, name)

    def ask(self, answerer: Answerer, questions: list[Question], known: References, file: str) -> Said:
        experiment = self.experiment
        path = experiment.out / "predictions" / f"{file}.jsonl"
        short = {question.sample_id for question in questions if question.short}

        def first(prediction: Prediction) -> float | None:
            return right(prediction, chosen_text(prediction.candidates, 0), known) if prediction.sample_id in short else None

        plan = chunks(questions, experiment.decoding, experiment.settings.description_tokens)
        asked = ask(answerer, self.scorers, self.judging, plan, path, file, first, self.share)
        return Said(path, questions, asked.predictions, asked.questions_per_second, asked.without_graphs)


@dataclass(frozen=True, slots=True)
class Everything:
    """The questions, and what was said to them by the systems, by the controls, by the systems to those of the validation split,
    and by the systems about corrupted pictures. scorers: those that scored it, with their banks."""

    questions: list[Question]
    references: References
    scorers: Sequence[NamedScorer]
    systems: dict[str, Said] = field(default_factory=dict)
    controls: dict[str, Said] = field(default_factory=dict)
    validation: dict[str, Said] = field(default_factory=dict)
    corrupted: dict[str, dict[Condition, Said]] = field(default_factory=dict)


def ask_everything(
    experiment: Experiment, load: Load, load_untuned: Load, scorers: Sequence[NamedScorer] = (), share: Share | None = None
) -> Everything:
    """Ask all systems all that they are asked; one is in memory at a time. Predictions go below `experiment.out`.

    load makes a system ready to answer, load_untuned does the same with a fresh projector. share: what falls to this process; all
    of them get the same back. Raises UsageError for settings that do not fit together, before any system is loaded.
    """
    check(experiment, scorers)
    settings, store = experiment.settings, experiment.store
    questions, known = choose(store, settings.split, settings.limit), references(store, settings.split)
    everything = Everything(questions, known, with_banks(scorers, store, experiment.rerank.bank))
    interview = _Interview(experiment, everything.scorers, experiment.rerank.self_score, share or Share())
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


def _free() -> None:
    """Give back the memory of a system that is no longer referred to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _validation_questions(experiment: Experiment) -> list[Question]:
    """Short questions of the validation split. Raises UsageError when it has none."""
    rerank = experiment.rerank
    limit = rerank.tune_limit if rerank.tune_limit is not None else experiment.settings.limit
    short = [question for question in choose(experiment.store, "validation", None) if question.short][:limit]
    if not short:
        raise UsageError("rerank.tune: the validation split has no questions with short answers")
    return short
