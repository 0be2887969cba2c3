"""tools/download.py with the real client against a local hub; no network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from errors import TesseraError, UsageError
from model.hub.download import ModelScope, RemoteFile, check_disk_space, format_bytes, select_files

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CUT = 5 << 20
"""Number of bytes after which a response is cut off."""


@dataclass
class FakeHub:
    """Repositories, and the requests for them. `cut`: cut off the next large response."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    cut: bool = False
    ranges: list[str | None] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


def handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.file(body=False)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not path.startswith("/api/models/"):
                return self.file(body=True)
            name = "/".join(path.split("/")[3:5])
            if name not in hub.repositories:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = hub.repositories[name]
            if "/tree/" in path:
                content: Any = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for path, data in files.items()
                ]
            else:
                content = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            return self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def file(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/", 4)
            if len(parts) < 5:
                return self.answer(404, b"", {})
            owner, repository, _, _, path = parts
            data = hub.repositories[f"{owner}/{repository}"][path]
            digest = hashlib.sha256(data) if path.endswith(".safetensors") else hashlib.sha1(data)
            headers = {"ETag": f'"{digest.hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if not body:
                return self.answer(200, data, headers, body=False)
            hub.fetched.append(path)
            byte_range = self.headers.get("Range")
            if len(data) > CUT:
                hub.ranges.append(byte_range)
            start = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
            if byte_range:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut and len(data) > CUT
            hub.cut = hub.cut and not cut
            return self.answer(206 if byte_range else 200, data[start:], headers, limit=CUT if cut else None)

        def answer(self, status: int, data: bytes, headers: dict[str, str], body: bool = True, limit: int | None = None) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:limit])
            self.close_connection = limit is not None

    return Handler


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


def test_an_interrupted_download_resumes_in_the_middle_of_the_file(command: Command, hub: FakeHub) -> None:
    hub.cut = True
    status, _, error = command.run()
    assert status == 1
    assert "maker/siglip: the Hugging Face hub cannot be reached (no network?); run the command again to resume" in error.splitlines()[-1]
    status, _, error = command.run()
    assert status == 0, error
    assert hub.ranges == ["bytes=0-", f"bytes={CUT}-"]
    (weights,) = command.folder.glob("home/hub/models--maker--siglip/snapshots/*/model.safetensors")
    assert weights.read_bytes() == hub.repositories["maker/siglip"]["model.safetensors"]
    assert not list(command.folder.rglob("*.partial"))


def test_a_damaged_file_is_removed_and_downloaded_again(command: Command, hub: FakeHub) -> None:
    hub.cut = True
    command.run()
    (partial,) = command.folder.rglob("*.partial")
    with partial.open("r+b") as content:
        content.write(b"xx")
    status, _, error = command.run()
    assert status == 1
    assert "model.safetensors was corrupt and has been removed; run the command again" in error
    assert command.run()[0] == 0


def test_no_network_is_one_line(tmp_path: Path) -> None:
    # Nothing listens on port 1.
    status, _, error = Command(tmp_path, "http://127.0.0.1:1").run()
    assert status == 1
    assert len(error.splitlines()) == 1
    assert "maker/siglip: the Hugging Face hub cannot be reached (no network?)" in error


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
        "    def get_model_files(self, model_id, recursive):\n"
        "        return [{'Path': 'config.json', 'Size': 2}, {'Path': 'model.safetensors', 'Size': 3}, {'Path': 'a.bin', 'Size': 9}]\n"
        "def snapshot_download(model_id, local_dir, allow_patterns):\n"
        "    Path(local_dir).mkdir(parents=True)\n"
        "    for name in allow_patterns:\n"
        "        (Path(local_dir) / name).write_bytes(b'x' * (2 if name == 'config.json' else 3))\n"
        "    return local_dir\n"
    )
    command = Command(tmp_path, "http://127.0.0.1:1")
    command.import_from(tmp_path)
    status, out, error = command.run("--source", "modelscope", "--into", "here")
    assert status == 0, error
    assert "use with: model.vision=here/maker/siglip model.language=here/maker/qwen" in out
    assert sorted(path.name for path in (tmp_path / "here/maker/siglip").iterdir()) == ["config.json", "model.safetensors"]
    assert "total to download: 0 B" in command.run("--source", "modelscope", "--into", "here")[1]


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
    class HubApi:
        def get_model_files(self, *_: object, **__: object) -> None:
            raise error

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


def test_a_full_disk_is_reported_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    check_disk_space(tmp_path / "not" / "yet", 10**9)
    with pytest.raises(UsageError, match=r"needs 2\.5 GB, but only 1 GB are free"):
        check_disk_space(tmp_path / "not" / "yet", 2_500_000_000)


def test_sizes_are_readable() -> None:
    assert [format_bytes(size) for size in (0, 999, 1500, 3.51e9, 2e12)] == ["0 B", "999 B", "1.5 kB", "3.51 GB", "2 TB"]
