"""A folder is compared with its manifest, file by file; files that cannot be read are named."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from errors import UsageError
from model import checkpoint_manifest
from model.checkpoint_manifest import manifest_mismatch, model_digest, verify, write_manifest

FILES = {
    "config.json": b'{"a": 1}',
    "adapter_model.safetensors": b"x" * 100,
    "language/config.json": b"{}",
    "trainer/optimizer.pt": b"y" * 50,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete folder of small files."""
    folder = tmp_path / "checkpoint-3"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_half(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def test_a_folder_matches_the_manifest_that_was_written_for_it(folder: Path) -> None:
    assert manifest_mismatch(folder) is None
    listed = json.loads((folder / "whole.json").read_text(encoding="utf-8"))["files"]
    assert listed.keys() == FILES.keys()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_byte, "the content of {} has changed"),
        (zero_half, "the content of {} has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "{} has .* bytes, whole.json lists"),
        (Path.unlink, "{} is missing"),
    ],
    ids=["flipped byte", "half zeros", "cut off", "deleted"],
)
def test_every_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / name)
    assert re.match(message.format(name), str(manifest_mismatch(folder)))


def test_damage_is_found_in_a_file_that_was_checked_before(folder: Path) -> None:
    for name in FILES:
        os.utime(folder / name, (1, 1))  # long ago: its hash is kept
    assert manifest_mismatch(folder) is None
    flip_byte(folder / "config.json")
    assert "config.json has changed" in str(manifest_mismatch(folder))


def test_the_trainer_state_counts_where_it_is_read_only(folder: Path) -> None:
    flip_byte(folder / "trainer" / "optimizer.pt")
    assert "trainer/optimizer.pt has changed" in str(manifest_mismatch(folder))
    assert manifest_mismatch(folder, model_only=True) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", "model.safetensors is not listed in whole.json"),
        ("language/generation_config.json", "language/generation_config.json is not listed in whole.json"),
        ("notes.txt", None),
        ("README.md", None),
        (".cache/download.json", None),
    ],
)
def test_a_file_that_was_added_counts_if_loading_would_read_it(folder: Path, name: str, reason: str | None) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"{}")
    found = manifest_mismatch(folder)
    assert found is None if reason is None else str(found).startswith(reason)


@pytest.mark.parametrize(
    "content", ["", '{"a"', "[]", '{"files": {"config.json": 8}}', '{"files": {"a": {"size": "b", "sha256": 1}}}', '{"a": {}}']
)
def test_a_damaged_manifest_is_named(folder: Path, content: str) -> None:
    (folder / "whole.json").write_text(content, encoding="utf-8")
    assert "whole.json is damaged" in str(manifest_mismatch(folder))


def write_sizes_only(folder: Path) -> None:
    """The manifest that version 1 wrote."""
    (folder / "whole.json").write_text(json.dumps({name: len(content) for name, content in FILES.items()}), encoding="utf-8")


def test_a_manifest_of_before_holds_sizes_and_is_accepted_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sizes_only(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert manifest_mismatch(folder) == "adapter_model.safetensors is missing"
    (folder / "adapter_model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    assert "adapter_model.safetensors has 16 bytes, whole.json lists 100" in str(manifest_mismatch(folder))
    (folder / "adapter_model.safetensors").write_bytes((92).to_bytes(8, "little") + b"{}".ljust(92))
    verify(folder)
    assert "holds sizes only: contents were not checked" in caplog.text


def test_a_folder_without_a_manifest_is_no_checkpoint(folder: Path) -> None:
    (folder / "whole.json").unlink()
    with pytest.raises(UsageError, match=r"not a complete, undamaged checkpoint: it has no whole\.json"):
        verify(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[1]"),
        ("config.json", b"\xff\xfe{}"),
        ("config.json", b"[" * 100_000),
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", bytes(64)),
        ("adapter_model.safetensors", b"\xff" * 64),
        ("language/config.json", b'{"half'),
    ],
)
def test_a_file_that_cannot_be_read_is_named_even_if_the_manifest_lists_it(folder: Path, name: str, content: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / name).write_bytes(content)
    write_manifest(folder)
    with pytest.raises(UsageError, match=f"{folder / name}: damaged"):
        verify(folder)


def test_the_digest_of_a_model_does_not_depend_on_its_place_or_its_trainer_state(folder: Path) -> None:
    digest = model_digest(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    flip_byte(moved / "trainer" / "optimizer.pt")
    assert model_digest(moved) == digest
    flip_byte(moved / "config.json")
    assert model_digest(moved) != digest


def test_a_hash_is_kept_only_of_a_file_that_is_not_being_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    compute = checkpoint_manifest._read_sha256

    def compute_and_count(path: Path) -> str:
        read.append(path)
        return compute(path)

    monkeypatch.setattr(checkpoint_manifest, "_read_sha256", compute_and_count)
    manifest_mismatch(folder)
    manifest_mismatch(folder)
    assert len(read) == 2 * len(FILES)
    for name in FILES:
        os.utime(folder / name, (1, 1))
    read.clear()
    manifest_mismatch(folder)
    manifest_mismatch(folder)
    assert len(read) == len(FILES)
