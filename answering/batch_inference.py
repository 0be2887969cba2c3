"""A folder of pictures, each with a caption and an answer, as JSON lines that a killed run goes on with."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answering.protocol import Answerer, Decoding
from answering.reply import Reply, Reranker, question_request, reply
from atomic_io import write_text
from errors import UsageError
from progress import Progress

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Files taken for pictures."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every picture is asked. `caption`: the question that asks for a description, which may be `caption_tokens`
    long; `question`: a short-answer question, or None."""

    caption: str
    question: str | None
    decoding: Decoding
    caption_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """How many pictures were answered, how many of them stood in the file already, and how many failed."""

    pictures: int
    kept: int
    errors: int


def find_pictures(folder: Path) -> list[Path]:
    """Picture files in a folder and below it, by name. Raises UsageError when there are none."""
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: there is no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"--images {folder}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    return found


def answer_folder(answerer: Answerer, reranker: Reranker | None, folder: Path, plan: Plan, path: Path, model: dict[str, Any]) -> Done:
    """Write one line a picture to `path`: image, caption, question, answer, candidates, error.

    model: what identifies the system. Lines that the same system, plan and picture file gave without an error are kept.
    """
    pictures = find_pictures(folder)
    asked = json.dumps([model, dataclasses.asdict(plan), None if reranker is None else reranker.identity], default=str)
    keys = {picture: _key(asked, picture) for picture in pictures}
    known = {line["key"]: line for line in _read(path) if not line["errors"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = {picture: known[key] for picture, key in keys.items() if key in known}
    kept, left = len(lines), [picture for picture in pictures if picture not in lines]
    # What was kept is written first, so that half a line of a killed run is gone before anything is appended.
    write_text(path, _text(lines.values()))
    with path.open("a", encoding="utf-8", newline="\n") as file, Progress("pictures", len(left), "pictures") as progress:
        for start in range(0, len(left), plan.decoding.batch_size):
            part = left[start : start + plan.decoding.batch_size]
            for picture, line in zip(part, _lines(answerer, reranker, folder, plan, part), strict=True):
                lines[picture] = {**line, "key": keys[picture]}
                file.write(_text([lines[picture]]))
            file.flush()
            progress.update(len(part))
    write_text(path, _text(lines[picture] for picture in pictures))
    return Done(len(pictures), kept, sum(bool(line["errors"]) for line in lines.values()))


def _lines(answerer: Answerer, reranker: Reranker | None, folder: Path, plan: Plan, pictures: Sequence[Path]) -> Iterator[dict[str, Any]]:
    longer = dataclasses.replace(plan.decoding, max_new_tokens=plan.caption_tokens)
    captions = reply(answerer, None, [question_request(str(p), plan.caption, [p], "caption") for p in pictures], longer)
    answers: Sequence[Reply | None] = [None] * len(pictures)
    if plan.question is not None:
        requests = [question_request(str(p), plan.question, [p]) for p in pictures]
        answers = reply(answerer, reranker, requests, plan.decoding)
    for picture, caption, answer in zip(pictures, captions, answers, strict=True):
        errors = [one.answer.error for one in (caption, answer) if one is not None and one.answer.error]
        line = {"image": picture.relative_to(folder).as_posix(), "caption": None if caption.answer.error else caption.chosen}
        if answer is not None:
            line |= {name: value for name, value in answer.record().items() if name != "error"}
        yield {**line, "errors": list(dict.fromkeys(errors))}


def _key(asked: str, picture: Path) -> str:
    state = picture.stat()
    return hashlib.blake2b(f"{asked}\0{picture}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=12).hexdigest()


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may end in half a line."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"key", "errors"} <= row.keys():
            yield row


def _text(lines: Any) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
