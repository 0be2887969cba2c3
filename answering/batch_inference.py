"""Caption every image of a folder and answer a question about it, as JSON lines. An interrupted run can be resumed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answering.config import for_descriptions
from answering.model_fingerprint import comparable, decoding_settings
from answering.protocol import Answerer, Decoding
from answering.reply import Reply, Reranker, question_request, reply
from answering.request_images import image_digest
from atomic_io import naming_full_disk, write_text
from dataset.loading.image_formats import IMAGE_SUFFIXES
from dataset.loading.image_io import ImageError, printable_path
from errors import UsageError
from progress import Progress
from renamed_keys import with_old_keys

SEARCH_FAILED_FILE = "search_failed.jsonl"
"""List of the images that could not be indexed, in the folder of results."""
MAX_SHOWN = 10
"""Largest number of failed images that are named on the terminal."""


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image file and why it failed."""

    image: str
    errors: tuple[str, ...]

    def line(self) -> str:
        """Name and reasons in one line."""
        return f"{self.image}: {'; '.join(self.errors)}"


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What to ask about every image.

    caption: the instruction that asks for a description. question: a short-answer question; None asks for captions alone.
    """

    caption: str
    question: str | None
    decoding: Decoding
    max_caption_tokens: int


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Number of images, how many of them were already in the file, and those that failed."""

    images: int
    reused: int
    failed: tuple[FailedImage, ...]


def find_images(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted by path. Raises UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: there is no such folder")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise UsageError(f"--images {folder}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def list_failed(failed: Sequence[FailedImage], path: Path) -> list[str]:
    """Write one JSON line for each failed image; without any, remove the list of an earlier run.

    Returns:
        Lines for the terminal: the first images, then the file with all of them; empty if none failed.
    """
    if not failed:
        path.unlink(missing_ok=True)
        return []
    write_text(path, _printable("".join(json.dumps(dataclasses.asdict(image), ensure_ascii=False) + "\n" for image in failed)))
    return [*(f"  {_printable(image.line())}" for image in failed[:MAX_SHOWN]), f"all {len(failed):,} failed images: {path}"]


def answer_folder(
    answerer: Answerer, reranker: Reranker | None, folder: Path, options: BatchOptions, path: Path, model: dict[str, Any]
) -> BatchSummary:
    """Write one line per image: image, caption, question, answer, candidates, errors.

    Lines of an earlier run are reused if they have no error and come from the same system, options, reranker and image content.

    Args:
        answerer: answers.
        reranker: chooses among candidates; None takes the first.
        folder: searched for images, with its subfolders.
        options: what to ask.
        path: the JSON lines file, read and written.
        model: identifies the system, as `model_fingerprint.identity` gives it.
    """
    images = find_images(folder)
    run_key = json.dumps([comparable(model), _settings(options), None if reranker is None else reranker.identity], default=str)
    earlier_run_key = _earlier_run_key(model, options, reranker)
    keys = {image: _line_key(run_key, image, folder) for image in images}
    finished_lines = {line["key"]: line for line in _read(path) if not line["errors"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier_keys = {} if earlier_run_key is None else {image: _earlier_line_key(earlier_run_key, image) for image in images}
    found = {image: finished_lines.get(key) or finished_lines.get(earlier_keys.get(image, key)) for image, key in keys.items()}
    lines = {image: _with_new_keys(line, keys[image]) for image, line in found.items() if line is not None}
    reused, remaining = len(lines), [image for image in images if image not in lines]
    # Rewrite the reused lines first: this removes an incomplete last line of an interrupted run before new lines are appended.
    write_text(path, _json_lines(lines.values()))
    progress = Progress("images", len(remaining), "images")
    with naming_full_disk(path), path.open("a", encoding="utf-8", newline="\n") as file, progress:
        for start in range(0, len(remaining), options.decoding.batch_size):
            batch = remaining[start : start + options.decoding.batch_size]
            for image, line in zip(batch, _answer_batch(answerer, reranker, folder, options, batch), strict=True):
                lines[image] = {**line, "key": keys[image]}
                file.write(_json_lines([lines[image]]))
            file.flush()
            progress.update(len(batch))
    write_text(path, _json_lines(lines[image] for image in images))
    failed = tuple(FailedImage(printable_path(image), tuple(lines[image]["errors"])) for image in images if lines[image]["errors"])
    return BatchSummary(len(images), reused, failed)


def _answer_batch(
    answerer: Answerer, reranker: Reranker | None, folder: Path, options: BatchOptions, images: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    caption_decoding = for_descriptions(options.decoding, options.max_caption_tokens)
    requests = [question_request(printable_path(image), options.caption, [image], "caption") for image in images]
    captions = reply(answerer, None, requests, caption_decoding)
    answers: Sequence[Reply | None] = [None] * len(images)
    if options.question is not None:
        requests = [question_request(printable_path(image), options.question, [image]) for image in images]
        answers = reply(answerer, reranker, requests, options.decoding)
    for image, caption, answer in zip(images, captions, answers, strict=True):
        errors = [result.answer.error for result in (caption, answer) if result is not None and result.answer.error]
        line = {"image": printable_path(image.relative_to(folder).as_posix()), "caption": None if caption.answer.error else caption.chosen}
        if answer is not None:
            line |= {name: value for name, value in answer.record().items() if name != "error"}
        yield {**line, "errors": list(dict.fromkeys(errors))}


def _settings(options: BatchOptions) -> dict[str, Any]:
    """Everything that can change the lines."""
    return {**dataclasses.asdict(options), "decoding": decoding_settings(options.decoding), **_caption_settings(options)}


def _caption_settings(options: BatchOptions) -> dict[str, Any]:
    """Settings that captions alone have; empty if there are none, as in every earlier version."""
    answers = decoding_settings(options.decoding)
    captions = decoding_settings(for_descriptions(options.decoding, options.decoding.max_new_tokens))
    own = {name: value for name, value in captions.items() if answers.get(name) != value}
    return {"caption_decoding": own} if own else {}


def _earlier_run_key(model: dict[str, Any], options: BatchOptions, reranker: Reranker | None) -> str | None:
    """The run key under schema version 1, whose captions had the settings of answers; None if they have others now."""
    if _caption_settings(options):
        return None
    names = with_old_keys("decoding", _settings(options), max_caption_tokens="caption_tokens")
    return json.dumps([with_old_keys("eval", model), names, None if reranker is None else reranker.earlier_identity], default=str)


def _with_new_keys(line: dict[str, Any], key: str) -> dict[str, Any]:
    return {("confidence" if name == "credibility" else name): value for name, value in line.items()} | {"key": key}


def _line_key(run_key: str, image: Path, folder: Path) -> str:
    """Identifies a line by the content of its image and its name in the folder: neither a copied folder nor other times change it.

    An image that cannot be read has its error as content; its line gets that error too, and is not used again.
    """
    try:
        sha256 = image_digest(image)
    except ImageError as error:
        sha256 = str(error)
    return hashlib.blake2b(
        f"{run_key}\0{printable_path(image.relative_to(folder).as_posix())}\0{sha256}".encode(), digest_size=12
    ).hexdigest()


def _earlier_line_key(run_key: str, image: Path) -> str:
    """The key under schema version 1, by path and modification time."""
    state = image.stat()
    return hashlib.blake2b(f"{run_key}\0{printable_path(image)}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=12).hexdigest()


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file whose last line may be incomplete."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"key", "errors"} <= row.keys():
            yield row


def _json_lines(lines: Any) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _printable(text: str) -> str:
    """The text with lone surrogates, from file names that are not UTF-8, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
