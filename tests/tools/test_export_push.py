"""tools/export.py --push with the real client against a local hub that records the requests."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

import cli
from model.siglip_qwen.processor import Processor
from tests.untrained import write_checkpoint
from tools import export

TOKEN = "hf_of_a_test"
REPOSITORY = "maker/mine"
Run = Callable[..., tuple[int, str, str]]


@dataclass
class Hub:
    """Repositories, and all requests (method, path, Authorization header) in order. `broken`: commits fail."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    broken: bool = False
    url: str = ""

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON of a request with a valid token."""
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "maker"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.startswith("/upload/"):
            self.stored[path.rsplit("/", 1)[1]] = body
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.upload_action(entry) for entry in json.loads(body)["objects"]]}
        if "/preupload/" in path:
            modes = [(entry["path"], "lfs" if entry["path"].endswith(".safetensors") else "regular") for entry in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
        if "/commit/" in path:
            return self.commit("/".join(path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])
        if "/tree/" in path:
            files = self.files["/".join(path.split("/")[3:5])]
            return 200, [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
        name = "/".join(path.split("/")[3:5])
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": file} for file in self.files[name]]}

    def create(self, request: dict[str, Any]) -> tuple[int, object]:
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] != "maker":
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if name in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.files[name], self.private[name] = {}, request.get("visibility") == "private" or request.get("private") is True
        return 200, {"url": f"{self.url}/{name}"}

    def upload_action(self, entry: dict[str, Any]) -> dict[str, object]:
        return {"oid": entry["oid"], "size": entry["size"], "actions": {"upload": {"href": f"{self.url}/upload/{entry['oid']}"}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, object]:
        if self.broken:
            return 400, {"error": "the disk of the hub is full"}
        files = self.files[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1", "hookOutput": ""}


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, authorization = self.path.partition("?")[0], self.headers.get("Authorization", "")
            hub.requests.append((self.command, path, authorization))
            authorized = authorization == f"Bearer {TOKEN}" or path.startswith("/upload/")
            status, content = hub.answer(path, body) if authorized else (401, {"error": "Invalid credentials"})
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            if status >= 400:
                self.send_header("X-Error-Message", str(content["error"]))  # type: ignore[index]
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_request  # noqa: N815 - names of the base class

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    fake = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"ENDPOINT": fake.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    huggingface_hub.close_session()
    yield fake
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(
    hub: Hub, parts: Path, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs tools/export.py on an untrained checkpoint: exit status, standard output, standard error."""
    del hub
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "checkpoints/small/checkpoint-7", parts, processor)
    Path("c.yaml").write_text(yaml.safe_dump({"name": "small"}))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.run(export.main, export.parser, ["--config", "c.yaml", "--format", "llava", *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_an_export_is_uploaded_in_one_commit_to_a_private_repository(run: Run, hub: Hub, tmp_path: Path) -> None:
    status, out, _ = run("--out", "exported", "--push", REPOSITORY)
    assert status == 0
    assert out.splitlines()[-1] == f"uploaded: {hub.url}/{REPOSITORY}/commit/1"
    written = {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    assert hub.files[REPOSITORY] == written
    assert hub.private[REPOSITORY]
    assert list(hub.stored) == [hashlib.sha256(written["model.safetensors"]).hexdigest()]
    paths = [path for _, path, authorization in hub.requests if authorization]
    assert paths[0] == "/api/whoami-v2", "the token is checked before the export"
    assert sum("/commit/" in path for path in paths) == 1
    assert not [path for _, path, token in hub.requests if path.startswith("/upload/") and token], "storage never receives the token"
    assert b'": "/' not in written["config.json"], "no local path"


def test_a_later_export_replaces_an_earlier_one_and_keeps_other_files(run: Run, hub: Hub) -> None:
    hub.files[REPOSITORY] = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    assert run("--out", "exported", "--push", REPOSITORY)[0] == 0
    assert {"model.safetensors", "notes.md"} <= hub.files[REPOSITORY].keys()
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} & hub.files[REPOSITORY].keys()


def test_without_a_token_nothing_is_requested_and_nothing_is_written(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", " ")
    status, _, error = run("--out", "exported", "--push", REPOSITORY)
    assert status == 2
    assert "--push: HF_TOKEN is not set" in error
    assert hub.requests == [] and not (tmp_path / "exported").exists()
    assert run("--out", "exported")[0] == 0, "an export without --push needs no token"


@pytest.mark.parametrize(
    ("repository", "token", "status", "message"),
    [
        ("mine", TOKEN, 2, "--push mine: expected OWNER/NAME"),
        ("a/b/c", TOKEN, 2, "--push a/b/c: expected OWNER/NAME"),
        ("maker/mi ne", TOKEN, 2, "--push maker/mi ne: expected OWNER/NAME"),
        (REPOSITORY, "hf_wrong", 1, f"--push {REPOSITORY}: the Hugging Face hub returned an error"),
    ],
)
def test_a_wrong_name_or_token_is_reported_before_the_export(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, token: str, status: int, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    exit_status, _, error = run("--out", "exported", "--push", repository)
    assert exit_status == status
    assert message in error and token not in error and "Traceback" not in error
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(("repository", "broken", "message"), [("others/mine", False, "rights"), (REPOSITORY, True, "the disk of the hub")])
def test_an_export_that_cannot_be_uploaded_is_kept_with_a_retry_command(
    run: Run, hub: Hub, tmp_path: Path, repository: str, broken: bool, message: str
) -> None:
    hub.broken = broken
    status, _, error = run("--out", "exported", "--push", repository)
    assert status == 1
    assert message in error.splitlines()[-1]
    assert error.rstrip().endswith(f"the export is in exported: retry with `hf upload {repository} exported`")
    assert (tmp_path / "exported/model.safetensors").is_file()


def test_a_hub_that_is_out_of_reach_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    status, _, error = run("--out", "exported", "--push", REPOSITORY)
    assert status == 1
    assert f"--push {REPOSITORY}: the Hugging Face hub cannot be reached or closed the connection" in error.splitlines()[-1]
