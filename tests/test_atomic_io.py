"""Atomic writes: no incomplete file is visible, and a failure keeps the old content."""

from pathlib import Path

import pytest

from atomic_io import atomic_write, atomic_write_folder, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_write(path) as temp_path:
        temp_path.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_file_has_the_suffix_of_the_target(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "a.png") as temp_path:
        assert temp_path.suffix == ".png"
        temp_path.touch()
    assert (tmp_path / "new" / "a.png").exists()


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_write_folder(path) as temp_path:
        (temp_path / "first").touch()
    with pytest.raises(RuntimeError), atomic_write_folder(path) as temp_path:
        (temp_path / "second").touch()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["first"]
    with atomic_write_folder(path) as temp_path:
        (temp_path / "third").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in path.iterdir()] == ["third"]


def test_json_is_unescaped_utf8_and_rejects_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"答案": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "答案": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert "答案" in path.read_text(encoding="utf-8")


def test_files_of_a_new_folder_have_the_read_permissions_of_the_folder(tmp_path: Path) -> None:
    with atomic_write_folder(tmp_path / "out") as temp_path:
        (temp_path / "model.safetensors").touch(mode=0o600)
        readers = temp_path.stat().st_mode & 0o444
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o444 == readers
