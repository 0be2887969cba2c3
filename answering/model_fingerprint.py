"""Identify models, scorers and decoding settings in result files, so that results of one are never used for another.

A model in a folder is identified by the content of its files. Neither where the folder stands nor when its files were written counts,
so results still hold after `cp -r`, `scp` or `git clone`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from answering.config import DecodingConfig
from answering.protocol import Description
from model.checkpoint_manifest import model_digest

_FOLDERS = {"path": "files", "adapter": "adapter_files"}
"""Setting of a system that may name a folder -> the key of the folder's fingerprint."""
_BASE_MODELS = ("vision", "language", "path")
"""Settings of a checkpoint that name the pre-trained models that it was trained on."""

NEUTRAL_SETTINGS: dict[str, object] = {
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "stop": [],
}
"""Decoding settings that earlier versions did not have, and the value of each that changes nothing."""


def digest(*values: object) -> str:
    """A hash of JSON-like values: 16 hexadecimal digits."""
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def identity(description: Description) -> dict[str, Any]:
    """The record of a model in prediction files: its kind, its settings, and the fingerprints of its folders if it has any.

    Compare two of them by `comparable`: the record also says where the folder stood.
    """
    files = {key: fingerprint(Path(str(description.settings.get(setting) or ""))) for setting, key in _FOLDERS.items()}
    model = {"kind": description.kind, **description.settings, **{key: value for key, value in files.items() if value is not None}}
    plain: dict[str, Any] = json.loads(json.dumps(model, default=str))
    return plain


def comparable(model: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an `identity` that must be equal for two models to be the same: without the path of a folder whose content is known."""
    located = {setting for setting, key in _FOLDERS.items() if key in model}
    return {key: value for key, value in model.items() if key not in located}


def fingerprint(folder: Path) -> str | None:
    """A hash of the names and contents of a folder's files and, for a checkpoint, of the pre-trained models in folders that it names.

    Every file is read once per process. None if there is no such folder (a hub name).
    """
    if not folder.name or not folder.is_dir():
        return None
    return digest(model_digest(folder), [model_digest(base) for base in _base_folders(folder)])


def _base_folders(folder: Path) -> list[Path]:
    """The folders of the pre-trained models that a checkpoint's config.json names; a hub name is part of that file's content already."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    settings = config.get("settings")
    names = [settings.get(key) for key in _BASE_MODELS] if isinstance(settings, dict) else []
    return [Path(name) for name in names if isinstance(name, str) and name and Path(name).is_dir()]


def scorer_identity(name: str, statement_form: str) -> str:
    """Identifies a scorer: the fingerprint of its folder, or its hub name, and the form of the statements it reads."""
    files = fingerprint(Path(name))
    return f"{name if files is None else f'files {files}'}, {statement_form}"


def decoding_settings(decoding: DecodingConfig) -> dict[str, Any]:
    """All decoding settings, as JSON holds them; settings that earlier versions did not have are left out where they change nothing,
    so that what was saved under their absence is found again."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(decoding).items()}
    return {name: value for name, value in values.items() if name not in NEUTRAL_SETTINGS or value not in (None, NEUTRAL_SETTINGS[name])}


def decoding_record(decoding: DecodingConfig) -> dict[str, Any]:
    """The decoding settings that can change an answer, for result files; those that only change the speed are left out."""
    return {name: value for name, value in decoding_settings(decoding).items() if name not in ("batch_size", "cuda_graphs")}
