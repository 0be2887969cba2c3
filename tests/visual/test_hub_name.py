"""Names of pre-trained models with a revision, and that no code of a model's own is ever run."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from errors import UsageError
from tests.test_layout import SOURCES
from visual import vision_encoder
from visual.hub_name import HubName, pretrained


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("Qwen/Qwen3-1.7B", HubName("Qwen/Qwen3-1.7B")),
        ("gpt2", HubName("gpt2")),
        ("Qwen/Qwen3-1.7B@main", HubName("Qwen/Qwen3-1.7B", "main")),
        ("Qwen/Qwen3-1.7B@refs/pr/1", HubName("Qwen/Qwen3-1.7B", "refs/pr/1")),
        ("a/b@0123456789abcdef0123456789abcdef01234567", HubName("a/b", "0123456789abcdef0123456789abcdef01234567")),
        ("a/..", None),
        ("a/b@../../x", None),
        ("a/b@", None),
        ("a/b@/x", None),
        ("a/b@x@y", None),
        ("./parts", None),
        ("/models/siglip", None),
        ("a/b/c", None),
    ],
)
def test_a_revision_follows_the_name(name: str, parsed: HubName | None) -> None:
    assert HubName.parse(name) == parsed


def test_a_folder_comes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    revision = {"pretrained_model_name_or_path": "a/b", "revision": "v1", "trust_remote_code": False}
    assert pretrained("a/b@v1") == revision
    assert pretrained("a/b") == {"pretrained_model_name_or_path": "a/b", "trust_remote_code": False}
    (tmp_path / "a/b@v1").mkdir(parents=True)
    assert pretrained("a/b@v1") == {"pretrained_model_name_or_path": "a/b@v1", "trust_remote_code": False}


def test_code_that_lies_with_a_model_is_not_run(parts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(parts / "siglip", tmp_path / "siglip")
    settings = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "evil", "auto_map": auto_map}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UsageError, match="contains custom code"):
        vision_encoder.vision_config(str(folder))
    assert not (tmp_path / "ran").exists()


OWN_CLASSES = {
    "cls",
    "Processor",
    "QwenVlProcessor",
    "Blip2Processor",
    "LlavaProcessor",
    "ResnetGpt2Processor",
    "peft.PeftConfig",
    "peft.PeftModel",
    "TilesProcessor",
}
"""What has a from_pretrained without code from a hub: the project's own, and adapters, which are local files."""


def calls_of_from_pretrained(path: Path) -> list[ast.Call]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in calls if call.func.attr == "from_pretrained"]  # type: ignore[attr-defined]


def test_every_model_is_loaded_without_its_code_and_in_the_revision_of_its_name() -> None:
    checked = 0
    for path in SOURCES:
        if "peers" in path.parts:
            continue  # programs that are compared with: they import nothing of this project and load folders that it has written
        for call in calls_of_from_pretrained(path):
            if ast.unparse(call.func.value) in OWN_CLASSES:  # type: ignore[attr-defined]
                continue
            checked += 1
            unpacked = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
            assert not call.args and any(value.startswith("pretrained(") for value in unpacked), f"{path}:{call.lineno}"
    assert checked > 15
