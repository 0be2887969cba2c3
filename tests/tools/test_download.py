"""tools/download.py with the real client against a local hub; no network."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from errors import TesseraError, UsageError
from model.hub.download import ModelScope, RemoteFile, check_disk_space, format_bytes, select_files
from tests.tools.fake_hub import FakeHub, handler

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    vision = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * (12 << 12), "pytorch_model.bin": b"never", "README.md": b"# S"}
    language = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"w" * 2000, "original/consolidated.00.pth": b"never"}
    fake = FakeHub({"maker/siglip": vision, "maker/qwen": language})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()


class Command:
    """Runs tools/download.py in `folder` with the hub at `url`."""

    def __init__(self, folder: Path, url: str):
        self.folder = folder
        config = {"name": "x", "model": {"vision": "maker/siglip", "language": "maker/qwen"}}
        (folder / "c.yaml").write_text(yaml.safe_dump(config))
        self.environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        self.environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

    def import_from(self, folder: Path) -> None:
        """Put a folder at the front of the module search path."""
        self.environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [self.environment.get("PYTHONPATH")])])

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "tools" / "download.py"), "--config", "c.yaml", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, error = process.communicate()
        return process.returncode, out, error


@pytest.fixture
def command(tmp_path: Path, hub: FakeHub) -> Command:
    return Command(tmp_path, hub.url)


def test_sizes_are_printed_first_and_only_missing_files_are_downloaded(command: Command, hub: FakeHub) -> None:
    status, out, _ = command.run("--sizes")
    assert status == 0
    assert "model.vision: maker/siglip, 3 files, 12.6 MB, to download: 12.6 MB" in out
    assert "model.language: maker/qwen, 2 files, 2 kB, to download: 2 kB" in out
    assert not hub.fetched
    status, out, error = command.run()
    assert status == 0, error
    assert sorted(hub.fetched) == ["README.md", "config.json", "config.json", "model-00001-of-00001.safetensors", "model.safetensors"]
    (weights,) = command.folder.glob("home/hub/models--maker--siglip/snapshots/*/model.safetensors")
    assert weights.read_bytes() == hub.repositories["maker/siglip"]["model.safetensors"]
    hub.fetched.clear()
    status, out, _ = command.run()
    assert "total to download: 0 B" in out
    assert not hub.fetched


def test_a_download_that_is_cut_off_goes_on_in_the_middle_of_the_file(command: Command, hub: FakeHub) -> None:
    hub.cut = True
    status, _, error = command.run()
    assert status == 0, error
    # The client writes, and so goes on, in steps of 10 MiB.
    assert hub.ranges == [None, f"bytes={10 << 20}-"]
    (weights,) = command.folder.glob("home/hub/models--maker--siglip/snapshots/*/model.safetensors")
    assert weights.read_bytes() == hub.repositories["maker/siglip"]["model.safetensors"]


def test_a_damaged_file_is_removed_and_downloaded_again(command: Command, hub: FakeHub) -> None:
    hub.damage = True
    status, _, error = command.run()
    assert status == 1
    assert "model.safetensors was corrupt and has been removed; run the command again" in error
    assert not list(command.folder.rglob("model.safetensors"))
    hub.fetched.clear()
    status, _, error = command.run()
    assert status == 0, error
    assert "model.safetensors" in hub.fetched and "README.md" not in hub.fetched


def test_a_revision_is_downloaded_and_loaded_by_its_name(command: Command, hub: FakeHub) -> None:
    hub.repositories["maker/siglip@v1"] = {"config.json": b'{"model_type": "siglip", "vision_config": {"image_size": 48, "patch_size": 8}}'}
    status, out, error = command.run("model.vision=maker/siglip@v1")
    assert status == 0, error
    assert "model.vision: maker/siglip@v1, 1 files" in out
    (ref,) = command.folder.glob("home/hub/models--maker--siglip/refs/*")
    (config,) = command.folder.glob("home/hub/models--maker--siglip/snapshots/*/config.json")
    assert (ref.name, ref.read_text()) == ("v1", config.parent.name)
    load = "from visual.vision_encoder import vision_config; print(vision_config('maker/siglip@v1').image_size)"
    offline = {**command.environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", load], env=offline, capture_output=True, text=True, check=False)
    assert loaded.stdout == "48\n", loaded.stderr


OUTSIDE = "../../../../../../escaped"


@pytest.mark.parametrize(
    "attack",
    [
        {"etag": OUTSIDE},
        {"etag": "FOLDER/escaped"},
        {"etag": ".."},
        {"commit": OUTSIDE},
        {"oid": OUTSIDE},
        {"listed": f"{OUTSIDE}.json"},
        {"listed": "FOLDER/escaped.json"},
        {"listed": "..\\..\\escaped.json"},
    ],
)
def test_nothing_that_a_server_names_is_written_outside_of_the_cache(command: Command, hub: FakeHub, attack: dict[str, str]) -> None:
    for key, value in attack.items():
        setattr(hub, key, value.replace("FOLDER", str(command.folder)))
    before = set(command.folder.iterdir())
    status, _, error = command.run()
    assert status == 1
    assert len(error.splitlines()) == 1 and "nothing was written" in error, error
    assert not list(command.folder.rglob("*escaped*"))
    assert {path.name for path in set(command.folder.iterdir()) - before} <= {"home"}


def test_no_network_is_one_line_and_is_not_tried_again_and_again(tmp_path: Path) -> None:
    # Nothing listens on port 1.
    status, _, error = Command(tmp_path, "http://127.0.0.1:1").run()
    assert status == 1
    notice, message = error.splitlines()
    assert notice == "http://127.0.0.1:1 cannot be reached: what was fetched before is used"
    assert "maker/siglip: the Hugging Face hub cannot be reached (no network, or HF_HUB_OFFLINE is set)" in message


def test_an_unknown_hub_name_is_one_line(command: Command, hub: FakeHub) -> None:
    del hub.repositories["maker/qwen"]
    status, _, error = command.run()
    assert status == 1
    assert len(error.splitlines()) == 1
    assert "maker/qwen: the Hugging Face hub does not provide this model" in error


def test_folders_need_no_download(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    status, out, _ = Command(tmp_path, "http://127.0.0.1:1").run("model.vision=parts", "model.language=parts")
    assert status == 0
    assert out == "model.vision, model.language: parts is a local folder\n"


def test_a_missing_folder_is_an_error_with_its_key(tmp_path: Path) -> None:
    status, _, error = Command(tmp_path, "http://127.0.0.1:1").run("model.vision=./parts/siglip")
    assert status == 2
    assert "model.vision: ./parts/siglip does not exist" in error


def test_the_error_about_a_missing_modelscope_client_has_the_install_command(tmp_path: Path) -> None:
    (tmp_path / "modelscope.py").write_text("raise ImportError")
    command = Command(tmp_path, "http://127.0.0.1:1")
    command.import_from(tmp_path)
    status, _, error = command.run("--source", "modelscope")
    assert status == 2
    assert error == "error: --source modelscope needs its client: pip install modelscope\n"


def test_modelscope_downloads_into_a_folder_and_prints_the_overrides(tmp_path: Path) -> None:
    (tmp_path / "modelscope" / "hub").mkdir(parents=True)
    for empty in ("__init__.py", "errors.py"):
        (tmp_path / "modelscope" / "hub" / empty).touch()
    (tmp_path / "modelscope" / "__init__.py").write_text(
        "from pathlib import Path\n"
        "class HubApi:\n"
        "    def get_model_files(self, model_id, recursive, revision='master'):\n"
        "        assert (model_id, revision) in [('maker/siglip', 'v1'), ('maker/qwen', 'master')]\n"
        "        return [{'Path': 'config.json', 'Size': 2}, {'Path': 'model.safetensors', 'Size': 3}, {'Path': 'a.bin', 'Size': 9}]\n"
        "def snapshot_download(model_id, local_dir, allow_patterns, revision='master'):\n"
        "    assert (model_id, revision) in [('maker/siglip', 'v1'), ('maker/qwen', 'master')]\n"
        "    Path(local_dir).mkdir(parents=True)\n"
        "    for name in allow_patterns:\n"
        "        (Path(local_dir) / name).write_bytes(b'x' * (2 if name == 'config.json' else 3))\n"
        "    return local_dir\n"
    )
    command = Command(tmp_path, "http://127.0.0.1:1")
    command.import_from(tmp_path)
    arguments = ("--source", "modelscope", "--into", "here", "model.vision=maker/siglip@v1")
    status, out, error = command.run(*arguments)
    assert status == 0, error
    assert "use with: model.vision=here/maker/siglip@v1 model.language=here/maker/qwen" in out
    assert sorted(path.name for path in (tmp_path / "here/maker/siglip@v1").iterdir()) == ["config.json", "model.safetensors"]
    assert "total to download: 0 B" in command.run(*arguments)[1]


@pytest.mark.parametrize("path", ["../config.json", "/tmp/config.json", "a/../../config.json", "..\\config.json"])
def test_a_file_of_modelscope_outside_of_its_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    scope = modelscope_with(lambda *_, **__: [{"Path": path, "Size": 1}], tmp_path, monkeypatch)
    with pytest.raises(TesseraError, match="which lies outside of its folder"):
        scope.files("a/b")


class NotThereError(Exception):
    """Stands for ModelScope's exceptions, which are neither OSError nor ValueError."""


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (NotThereError("no such\nmodel"), r"a/b: ModelScope does not provide this model: no such model \(NotThereError\)"),
        (OSError(), "no details given"),
    ],
)
def test_errors_of_modelscope_become_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    with pytest.raises(TesseraError, match=message):
        modelscope_that_raises(raised, tmp_path, monkeypatch).files("a/b")


def test_an_error_in_our_code_is_not_reported_as_one_of_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="a defect"):
        modelscope_that_raises(AttributeError("a defect"), tmp_path, monkeypatch).files("a/b")


def modelscope_that_raises(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModelScope:
    def get_model_files(*_: object, **__: object) -> None:
        raise error

    return modelscope_with(get_model_files, folder, monkeypatch)


def modelscope_with(listing: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModelScope:
    class HubApi:
        get_model_files = staticmethod(listing)

    errors = SimpleNamespace(NotThereError=NotThereError)
    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(HubApi=HubApi))
    monkeypatch.setitem(sys.modules, "modelscope.hub", SimpleNamespace(errors=errors))
    return ModelScope(folder)


def test_weights_are_downloaded_in_one_format_only() -> None:
    def selected(*paths: str) -> list[str]:
        return [file.path for file in select_files([RemoteFile(path, 1, False) for path in paths])]

    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert selected("config.json", "merges.txt", *sharded, "pytorch_model.bin", "tf_model.h5") == ["config.json", "merges.txt", *sharded]
    assert selected("model.safetensors", "model.fp16.safetensors") == ["model.safetensors"]
    assert selected("config.json", "pytorch_model.bin", "flax_model.msgpack") == ["config.json", "pytorch_model.bin"]
    assert selected("chat_template.jinja", "onnx/model.onnx", "LICENSE", "x.gguf") == ["chat_template.jinja", "LICENSE"]
    # The client takes a name for a pattern.
    assert selected("*.json", "[a-z].json", "../a.json", "config.json") == ["config.json"]


def test_a_full_disk_is_reported_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    check_disk_space(tmp_path / "not" / "yet", 10**9)
    with pytest.raises(UsageError, match=r"needs 2\.5 GB, but only 1 GB are free"):
        check_disk_space(tmp_path / "not" / "yet", 2_500_000_000)


def test_sizes_are_readable() -> None:
    assert [format_bytes(size) for size in (0, 999, 1500, 3.51e9, 2e12)] == ["0 B", "999 B", "1.5 kB", "3.51 GB", "2 TB"]
