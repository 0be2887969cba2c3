"""What stands for a model, a scorer and a decoding in files, so that nothing is taken for what another one made."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from answering.config import DecodingConfig
from answering.protocol import Description


def digest(*values: object) -> str:
    """Sixteen hexadecimal digits that stand for JSON-like values."""
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def identity(description: Description) -> dict[str, Any]:
    """What stands for a model in predictions files: kind, settings, and a fingerprint of its folder where it has one."""
    files = fingerprint(Path(str(description.settings.get("path", ""))))
    model = {"kind": description.kind, **description.settings, **({"files": files} if files else {})}
    plain: dict[str, Any] = json.loads(json.dumps(model, default=str))
    return plain


def fingerprint(folder: Path) -> str | None:
    """Stands for the names, sizes and times of change of a folder's files: training into it again makes another model.

    None for a hub name.
    """
    if not folder.name or not folder.is_dir():
        return None
    return digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()])


def scorer_identity(name: str, statement_form: str) -> str:
    """What stands for a scorer: its folder or hub name, with a fingerprint of the folder, and the wording of what it reads."""
    files = fingerprint(Path(name))
    return f"{name} ({files}), {statement_form}" if files else f"{name}, {statement_form}"


def decoding_record(decoding: DecodingConfig) -> dict[str, Any]:
    """The decoding as it stands in files: all that makes an answer, so without what only makes it faster."""
    return {name: value for name, value in dataclasses.asdict(decoding).items() if name not in ("batch_size", "cuda_graphs")}
