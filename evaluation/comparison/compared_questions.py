"""Match the questions of answer files with each other and with reference answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset.loading.sample_store import SampleStore
from dataset.sample import question_text
from errors import UsageError
from evaluation.comparison.external_predictions import AnswerFile

MAX_REWORDED = 0.1
"""Largest share of questions whose text may differ between a file and the data: beyond, the ids are taken for those of other data."""
ASK_CONFIG = "is --config (or --data) the right one for this file?"


@dataclass(frozen=True, slots=True)
class ComparedQuestions:
    """The compared questions: their ids, references and image ids, and for each file id -> the file's own id.

    notes: sentences about where the references are from and what is left out.
    """

    ids: list[str]
    references: Mapping[str, Sequence[str]]
    images: list[tuple[int, ...]]
    file_ids: list[dict[str, str]]
    notes: list[str] = field(default_factory=list)


def match_questions(files: Sequence[AnswerFile], open_store: Callable[[], SampleStore]) -> ComparedQuestions:
    """The questions that all files answer, with references of the files if any has some, else of the merged data.

    Raises UsageError if the files answer different questions, or questions that have no references here.
    """
    return _from_files(files) if any(file.references for file in files) else _from_store(files, open_store())


def _from_store(files: Sequence[AnswerFile], store: SampleStore) -> ComparedQuestions:
    """The questions with short answers, with references and images of the merged data."""
    rows = {name: row for row, name in enumerate(store.column("sample_id"))}
    file_ids = [_match_ids(file, rows, str(store.folder)) for file in files]
    ids = _common_ids(files, file_ids)
    all_samples = list(store.samples(np.array([rows[name] for name in ids])))
    texts = {sample.sample_id: question_text(sample.messages[-1].content) for sample in all_samples}
    notes = [f"references: {store.folder}"]
    for file, own_ids in zip(files, file_ids, strict=True):
        notes += _check_texts(file, own_ids, texts, str(store.folder))
        if not file.questions and any(name != own for name, own in own_ids.items()):
            notes.append(
                f"{file.name}: matched with {store.folder} by the last part of the ids alone; "
                "with question=FIELD the questions are compared too"
            )
    samples = [sample for sample in all_samples if sample.task == "vqa"]
    if not samples:
        raise UsageError(f"{files[0].name}: none of its questions has a short answer")
    if left_out := len(all_samples) - len(samples):
        notes.append(f"{left_out:,} of {len(all_samples):,} questions ask for captions or descriptions and are left out")
    references = {sample.sample_id: sample.answers or sample.targets for sample in samples}
    return ComparedQuestions(list(references), references, [sample.image_ids for sample in samples], file_ids, notes)


def _from_files(files: Sequence[AnswerFile]) -> ComparedQuestions:
    """Questions with the references and images given in the files. Raises UsageError if two files give different references."""
    references: dict[str, tuple[str, ...]] = {}
    for file in files:
        for name, texts in file.references.items():
            if sorted(references.setdefault(name, texts)) != sorted(texts):
                raise UsageError(f"{file.name}: its references to {name} differ from those of another file")
    holders = [file.name for file in files if file.references]
    file_ids = [_match_ids(file, references, " or ".join(dict.fromkeys(holders))) for file in files]
    ids = _common_ids(files, file_ids)
    asked = {name: files[0].questions[own] for name, own in file_ids[0].items() if own in files[0].questions}
    notes = [f"references: {', '.join(dict.fromkeys(holders))}"]
    for file, own_ids in zip(files[1:], file_ids[1:], strict=True):
        notes += _check_texts(file, own_ids, asked, files[0].name)
    images = {
        name: file.images[own] for file, own_ids in zip(files, file_ids, strict=True) for name, own in own_ids.items() if own in file.images
    }
    group_index = {image: i for i, image in enumerate(dict.fromkeys(images.values()))}
    grouped: list[tuple[int, ...]] = [(group_index[images[name]],) if name in images else () for name in ids]
    return ComparedQuestions(ids, references, grouped, file_ids, notes)


def _match_ids(file: AnswerFile, known: Mapping[str, object], where: str) -> dict[str, str]:
    """Known id -> the file's id: equal, or equal after the last slash (`vqa/42` and `42`). Raises UsageError if none or several match."""
    by_key: dict[str, list[str]] = {}
    for name in known:
        by_key.setdefault(name.rpartition("/")[2], []).append(name)
    matches = {own: [own] if own in known else by_key.get(own.rpartition("/")[2], []) for own in file.answers}
    if unknown := [own for own, names in matches.items() if not names]:
        raise UsageError(
            f"{file.name}: {len(unknown):,} of its {len(matches):,} questions are not in {where}, such as {unknown[0]}; {ASK_CONFIG}"
        )
    matched: dict[str, str] = {}
    for own, names in matches.items():
        if len(names) > 1 or names[0] in matched:
            raise UsageError(f"{file.name}: the question {own} may be any of {', '.join(names[:3])}; use the full id in the file")
        matched[names[0]] = own
    return matched


def _common_ids(files: Sequence[AnswerFile], file_ids: Sequence[Mapping[str, str]]) -> list[str]:
    """Ids of the questions. Raises UsageError unless all files answer the same ones."""
    for file, ids in zip(files, file_ids, strict=True):
        for other, other_ids in zip(files, file_ids, strict=True):
            if missing := ids.keys() - other_ids.keys():
                raise UsageError(f"the question sets differ: {len(missing)} of {file.name} are not in {other.name}, such as {min(missing)}")
    return list(file_ids[0])


def _check_texts(file: AnswerFile, own_ids: Mapping[str, str], texts: Mapping[str, str], where: str) -> list[str]:
    """Notes about questions that a file words differently than `texts` (id -> question), which come from `where`.

    Raises UsageError where many are other questions under the same ids.
    """
    asked = {name: file.questions[own] for name, own in own_ids.items() if own in file.questions and name in texts}
    reworded = [name for name, text in asked.items() if not _same_question(text, texts[name])]
    if not reworded:
        return []
    name = reworded[0]
    counts = f"{len(reworded):,} of its {len(asked):,} questions"
    if len(reworded) > MAX_REWORDED * len(asked):
        raise UsageError(
            f"{file.name}: {counts} are others than those of {where} with the same ids, such as {name}: "
            f"{asked[name].strip()[:80]!r}, there {texts[name].strip()[:80]!r}; {ASK_CONFIG}"
        )
    return [f"{file.name}: {counts} are worded differently in {where}, such as {name}"]


def _same_question(a: str, b: str) -> bool:
    """Whether one text contains the other, apart from case and spaces: a prompt contains the question that it asks."""
    a, b = ("".join(text.casefold().split()) for text in (a, b))
    return a in b or b in a
