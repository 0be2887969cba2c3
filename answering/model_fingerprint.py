"""Identify models, scorers and decoding settings in result files, so that results of one are never used for another."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from answering.config import DecodingConfig
from answering.protocol import Description


def digest(*values: object) -> str:
    """A hash of JSON-like values: 16 hexadecimal digits."""
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def identity(description: Description) -> dict[str, Any]:
    """Identifies a model in prediction files: its kind, its settings, and the fingerprint of its folder if it has one."""
    files = fingerprint(Path(str(description.settings.get("path", ""))))
    model = {"kind": description.kind, **description.settings, **({"files": files} if files else {})}
    plain: dict[str, Any] = json.loads(json.dumps(model, default=str))
    return plain


def fingerprint(folder: Path) -> str | None:
    """A hash of the names, sizes and modification times of a folder's files; it changes if a model is trained into the folder again.

    None if there is no such folder (a hub name).
    """
    if not folder.name or not folder.is_dir():
        return None
    return digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()])


def scorer_identity(name: str, statement_form: str) -> str:
    """Identifies a scorer: its folder or hub name, the fingerprint of the folder, and the form of the statements it reads."""
    files = fingerprint(Path(name))
    return f"{name} ({files}), {statement_form}" if files else f"{name}, {statement_form}"


def decoding_record(decoding: DecodingConfig) -> dict[str, Any]:
    """The decoding settings that can change an answer, for result files; those that only change the speed are left out."""
    return {name: value for name, value in dataclasses.asdict(decoding).items() if name not in ("batch_size", "cuda_graphs")}
