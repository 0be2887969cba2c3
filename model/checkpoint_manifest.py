"""The manifest of a checkpoint or an exported folder: size and SHA-256 of every file, written last.

whole.json: {"schema_version": 2, "files": {name: {"size": bytes, "sha256": hexadecimal}}}. Schema version 1 was {name: bytes}: of
such a folder only sizes can be checked, which is said in a warning.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from atomic_io import write_json
from cpu_cores import available_cores
from errors import UsageError

MANIFEST_NAME, TRAINER_FOLDER = "whole.json", "trainer"
"""The manifest's file, and the subfolder with the state of optimizer, schedule, random generators and run; only resuming reads it."""

SCHEMA_VERSION = 2

NEVER_LISTED = {MANIFEST_NAME, "README.md"}
"""Files that a manifest does not list: itself, and the model card, which people edit."""

READ_SUFFIXES = {".json", ".jinja", ".safetensors", ".pt", ".pth", ".bin", ".distcp", ".model"}
"""Suffixes of files that loading may read. Another file that is not listed (a note, an image) changes no answer."""

SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a file's modification time tells two contents apart, on any file system."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """Size in bytes and SHA-256 of a file; None in manifests of schema version 1."""

    size: int
    sha256: str | None


def write_manifest(folder: Path) -> None:
    """Write the manifest, which declares a folder complete. Reads all files once, several at a time."""
    names = _listed_files(folder)
    files = {name: {"size": (folder / name).stat().st_size, "sha256": sha256} for name, sha256 in _hash_files(folder, names).items()}
    write_json(folder / MANIFEST_NAME, {"schema_version": SCHEMA_VERSION, "files": files})


def manifest_mismatch(folder: Path, model_only: bool = False) -> str | None:
    """Why a folder is incomplete or damaged; None if every file is the one that its manifest lists.

    model_only: leave out the trainer state, which answering and exporting do not read.
    """
    if not folder.is_dir():
        return "the folder does not exist"
    try:
        listed = _read_manifest(folder)
        if isinstance(listed, str):
            return listed
        if model_only:
            listed = {name: entry for name, entry in listed.items() if _is_model_file(name)}
        return _added_file(folder, listed, model_only) or _first_difference(folder, listed)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror or error})"


def latest_checkpoint(folder: Path) -> Path:
    """The complete `checkpoint-<step>` with the highest step; incomplete and damaged ones are skipped with a warning.

    Raises UsageError when there is none.
    """
    steps = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    for step in sorted(steps, reverse=True):
        reason = manifest_mismatch(steps[step], model_only=True)
        if reason is None:
            return steps[step]
        log.warning("skipping %s: %s", steps[step], reason)
    raise UsageError(f"{folder}: it contains no complete checkpoint-<step>; train first (accelerate launch train.py)")


def file_mismatch(folder: Path, name: str) -> str | None:
    """As `manifest_mismatch` for one file, whatever the state of the others."""
    try:
        listed = _read_manifest(folder)
        if isinstance(listed, str):
            return listed
        return _first_difference(folder, {name: listed[name]}) if name in listed else f"{name} is not listed in {MANIFEST_NAME}"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"


def verify(folder: Path) -> None:
    """Check the model's files: against the manifest, and that each can be read. Raises UsageError naming the first one that fails.

    A whole model without a manifest was saved by another program, or by an earlier version: its files only have to be readable.
    """
    is_checkpoint = (folder / "config.json").is_file() and not any(folder.glob("model*.safetensors"))
    if is_checkpoint or (folder / MANIFEST_NAME).is_file():
        reason = manifest_mismatch(folder, model_only=True)
        if reason is not None:
            raise UsageError(f"{folder}: not a complete, undamaged checkpoint: {reason}; use another one, or copy this one again")
        if has_sizes_only(folder):
            log.warning("%s: %s is of an earlier version and holds sizes only: contents were not checked", folder, MANIFEST_NAME)
    for path in [*folder.glob("*.*"), *folder.glob("language/*.*")]:
        _check_readable(path)


def _check_readable(path: Path) -> None:
    """Raise UsageError if a JSON file is no object, or a safetensors file does not have the tensors that its header lists."""
    try:
        if path.suffix == ".json" and not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            raise UsageError(f"{path}: damaged: not a JSON object")
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                file.keys()
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UsageError(f"{path}: damaged, or not a {path.suffix[1:]} file ({' '.join(str(error).split())[:200]})") from error


def has_sizes_only(folder: Path) -> bool:
    """Whether a folder's manifest is of schema version 1, without SHA-256."""
    listed = _read_manifest(folder)
    return not isinstance(listed, str) and any(entry.sha256 is None for entry in listed.values())


def model_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a folder's model files, wherever the folder stands."""
    names = [name for name in _listed_files(folder) if _is_model_file(name)]
    return hashlib.sha256(json.dumps(_hash_files(folder, names), sort_keys=True).encode()).hexdigest()


def _first_difference(folder: Path, listed: dict[str, ManifestEntry]) -> str | None:
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry.size:
            return f"{name} has {path.stat().st_size:,} bytes, {MANIFEST_NAME} lists {entry.size:,}"
    hashes = _hash_files(folder, [name for name, entry in listed.items() if entry.sha256 is not None])
    for name, sha256 in hashes.items():
        if sha256 != listed[name].sha256:
            return f"the content of {name} has changed since it was written (its SHA-256 is not that of {MANIFEST_NAME})"
    return None


def _added_file(folder: Path, listed: dict[str, ManifestEntry], model_only: bool) -> str | None:
    for name in _listed_files(folder):
        if name not in listed and Path(name).suffix in READ_SUFFIXES and (_is_model_file(name) or not model_only):
            return f"{name} is not listed in {MANIFEST_NAME}: it was added later"
    return None


def _read_manifest(folder: Path) -> dict[str, ManifestEntry] | str:
    """The entries by file name, or why there are none."""
    try:
        raw = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        # Schema version 1 had nothing but names and sizes.
        files = raw["files"] if isinstance(raw.get("files"), dict) else {name: {"size": size, "sha256": None} for name, size in raw.items()}
        entries = {name: ManifestEntry(int(entry["size"]), entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST_NAME}, so it was not written completely"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST_NAME} is damaged: it is not a list of files with their sizes and SHA-256"
    return entries


def _listed_files(folder: Path) -> list[str]:
    """Names, relative to the folder, of the files that a manifest lists; hidden files and folders belong to other programs."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts) and str(name) not in NEVER_LISTED]


def _is_model_file(name: str) -> bool:
    return not name.startswith(f"{TRAINER_FOLDER}/")


def _hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files. hashlib releases the interpreter lock, so threads hash in parallel."""
    names = list(names)
    with ThreadPoolExecutor(min(8, available_cores())) as executor:
        return dict(zip(names, executor.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    """SHA-256 of a file; computed once for a file that several steps of one process check."""
    status = path.stat()
    if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
        return _read_sha256(path)
    return _settled_sha256(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _settled_sha256(path: Path, *_identity: int) -> str:
    return _read_sha256(path)


def _read_sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
