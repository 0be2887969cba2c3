"""One run of an ablation: train a variant with a seed, ask the test questions greedily, score the answers.

A run has a process of its own, so that its peak memory is its own, and that one which dies of it leaves the others be.
"""

import dataclasses
import multiprocessing
import platform
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

import torch

from answering.answerer_factory import build_answerer, default_device
from answering.config import CheckpointSystem, DecodingConfig
from answering.protocol import Answer, Answerer
from answering.rerank.choose_answer import chosen_text
from benchmarks.ablation.ablation_data import JudgedQuestions, PreparedData, judged_questions
from benchmarks.ablation.config import NamedVariant
from benchmarks.ablation.run_records import Answers, RunFigures
from cpu_cores import available_cores, limit_threads
from dataset.config import DataConfig
from dataset.worker_pool import end_with_parent
from errors import TesseraError
from evaluation.metrics.short_answers import vqa_accuracy
from evaluation.questions import Question, with_shuffled_images
from model.config import ModelConfig
from training.config import TrainConfig
from training.monitoring.metrics_history import History
from training.monitoring.throughput import peak_memory
from training.run import TrainingRun


class RunFailedError(TesseraError):
    """A run that ended without a result; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run: what is trained, with which seed, on which data, and a folder for its checkpoints, which is emptied."""

    variant: NamedVariant
    seed: int
    data: PreparedData
    folder: Path


@dataclass(frozen=True)
class _Experiment:
    """What training reads: the sections of the variant with the data of the ablation."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    data_folder: Path
    checkpoint_folder: Path
    result_folder: Path


def run_in_process(job: Job) -> RunFigures:
    """Carry out a run in a process of its own, which ends with this one. Raises RunFailedError with the reason."""
    # Spawn, not fork: threads of this process may be running.
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_carry_out, args=(job, sending))
    process.start()
    sending.close()
    try:
        outcome = _received(receiving)
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if outcome is None:
        status = process.exitcode or 0
        outcome = f"killed by signal {-status}, as it happens where memory runs out" if status < 0 else f"ended with status {status}"
    if isinstance(outcome, RunFigures):
        return outcome
    raise RunFailedError(outcome)


def _received(receiving: Connection) -> RunFigures | str | None:
    """What the process of a run sends; None if it ends without a word."""
    try:
        outcome: RunFigures | str = receiving.recv()
    except EOFError:
        return None
    return outcome


def _carry_out(job: Job, sending: Connection) -> None:
    """The main function of the process of a run: sends its figures, or the reason why there are none."""
    end_with_parent()
    limit_threads()
    try:
        sending.send(train_and_judge(job))
    except TesseraError as error:
        sending.send(str(error))
    except Exception as error:  # noqa: BLE001 (any defect of a variant is the reason why it has no result; the others go on)
        traceback.print_exc()
        sending.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def train_and_judge(job: Job) -> RunFigures:
    """Train, ask and score. Raises TesseraError when the training fails."""
    shutil.rmtree(job.folder, ignore_errors=True)
    config = job.variant.training(job.seed)
    started = time.monotonic()
    data = dataclasses.replace(config.data, sources=job.data.config.sources, folder=job.data.folder)
    experiment = _Experiment(data, config.model, config.train, job.data.folder, job.folder / "checkpoints", job.folder / "results")
    run = TrainingRun(experiment)
    checkpoint = run.train()
    trained, peak = time.monotonic(), peak_memory(run.machine.device)
    system = CheckpointSystem(name="variant", kind="checkpoint", path=str(checkpoint))
    answerer = build_answerer(system, checkpoint_folder=checkpoint.parent)
    judged = _judge(answerer, judged_questions(job.data.folder), config.decoding)
    shutil.rmtree(job.folder)
    device = default_device()
    return RunFigures(
        answers=judged.answers,
        shuffled=judged.shuffled,
        tokens_per_image=judged.tokens_per_image,
        samples_per_second=_samples_per_second(run.history, config.train.stages[-1].name),
        peak_memory_gib=peak / 2**30,
        training_seconds=trained - started,
        answering_seconds=time.monotonic() - trained,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        cores=min(available_cores(), torch.get_num_threads()),
    )


def _samples_per_second(history: History, stage: str) -> float:
    rates = [float(row["samples_per_second"]) for row in history.rows if row["stage"] == stage and "samples_per_second" in row]
    return fmean(rates[1:] or rates)


@dataclass(frozen=True, slots=True)
class _Judged:
    answers: Answers
    shuffled: float
    tokens_per_image: float


def _judge(answerer: Answerer, asked: JudgedQuestions, decoding: DecodingConfig) -> _Judged:
    """Ask the questions, and the seen ones about other images. Raises TesseraError for a question that the model cannot be asked."""
    greedy = dataclasses.replace(decoding, strategy="greedy", num_candidates=1)
    answered = _ask(answerer, asked.questions, greedy)
    scores = _scores(answered, asked)
    seen = [question for question, kind in zip(asked.questions, asked.kinds, strict=True) if kind in "sn"]
    shuffled = _scores(_ask(answerer, with_shuffled_images(seen, 0), greedy), asked)
    pairs = zip(asked.questions, answered, strict=True)
    tokens = [answer.visual_tokens / len(question.images) for question, answer in pairs if answer.visual_tokens]
    return _Judged(Answers.of(asked.kinds, asked.per_image, scores), fmean(shuffled), fmean(tokens) if tokens else 0.0)


def _ask(answerer: Answerer, questions: Sequence[Question], decoding: DecodingConfig) -> list[Answer]:
    answers = answerer.answer([question.request for question in questions], decoding)
    for answer in answers:
        if answer.error is not None:
            raise TesseraError(f"question {answer.request_id}: {answer.error}")
    return answers


def _scores(answers: Sequence[Answer], asked: JudgedQuestions) -> list[float]:
    return [vqa_accuracy(chosen_text(answer.candidates, 0), asked.references[answer.request_id]) for answer in answers]
