"""Which files of the server the page opens: a browser names a path in gradio's queue, through every handler that takes the image."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import pytest

from serving.demo.localization import PageError, translations
from serving.demo.page import running_page
from serving.demo.page_actions import DemoBackends
from serving.demo.upload_folder import GRADIO_FOLDER_VARIABLE, UploadFolder, private_upload_folder
from serving.http.cross_site import CrossSiteRules
from tests.serving.conftest import TIMEOUT_SECONDS
from tests.serving.search.conftest import png

NOT_UPLOADED = f"⚠️ {translations('en')['not_uploaded']}"
EVENTS = ("ask", "locate", "caption", "compare", "search_by_image", "classify", "insert")
"""Names of the handlers that open the image."""
COMPARING_EVENTS = ("new_conversation", "change_image")
"""Names of the handlers that only compare its path."""


@pytest.fixture
def folder(tmp_path: Path) -> UploadFolder:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads/inside.png").write_bytes(b"x")
    (tmp_path / "private.png").write_bytes(png(1))
    return UploadFolder(tmp_path / "uploads")


def test_a_file_below_the_upload_folder_is_opened(folder: UploadFolder) -> None:
    assert folder.checked(str(folder.path / "inside.png")) == folder.path / "inside.png"
    assert folder.checked(str(folder.path / "x/../inside.png")) == folder.path / "inside.png"


def link(folder: UploadFolder, target: Path) -> Path:
    path = folder.path / "link.png"
    path.symlink_to(target)
    return path


def test_nothing_else_is_opened(folder: UploadFolder) -> None:
    os.mkfifo(folder.path / "fifo.png")
    (folder.path / "folder.png").mkdir()
    outside = folder.path.parent / "private.png"
    others = ["/etc/passwd", "/dev/zero", "", "\0", "\ud800", "x" * 5000, outside, folder.path / "../private.png", folder.path / "none.png"]
    inside = [folder.path, folder.path / "fifo.png", folder.path / "folder.png", link(folder, outside), f"{folder.path}x/inside.png"]
    for name in map(str, [*others, *inside]):
        with pytest.raises(PageError, match="not_uploaded"):
            folder.checked(name)


def test_a_path_outside_is_refused_without_a_look_at_the_file_system(folder: UploadFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object, **__: object) -> None:
        raise AssertionError("the file system is asked")

    monkeypatch.setattr(Path, "resolve", look)
    with pytest.raises(PageError):
        folder.checked("/srv/secret.png")


def test_the_folder_is_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRADIO_FOLDER_VARIABLE, str(tmp_path / "large disk"))
    with private_upload_folder() as uploads:
        assert uploads.path.parent == tmp_path / "large disk"
        assert os.environ[GRADIO_FOLDER_VARIABLE] == str(uploads.path)
        assert uploads.path.stat().st_mode & 0o077 == 0
    assert not uploads.path.exists()
    assert os.environ[GRADIO_FOLDER_VARIABLE] == str(tmp_path / "large disk")


class Browser:
    """Speaks with gradio's queue as a browser does, or as an attacker would."""

    def __init__(self, blocks: gr.Blocks, session: str):
        self.session = session
        self.functions = {function.name: function for function in blocks.fns.values()}
        self.client = httpx2.Client(base_url=f"{blocks.local_url}gradio_api", timeout=TIMEOUT_SECONDS)

    def send(self, name: str, image: Any, text: str = "red, blue", event_data: Any = None) -> list[Any]:
        """Send an event with the image; returns the values of its outputs, the last of which is the status."""
        function = self.functions[name]
        given = {"image": image, "textbox": text, "state": None}
        # All other inputs are as the page shows them at first.
        data = [given.get(component.get_block_name(), component.value) for component in function.inputs]
        body = {"data": data, "fn_index": function._id, "session_hash": self.session, "event_data": event_data}
        return self._result(body)

    def change_language(self) -> None:
        """Change the language, which gives this browser new components."""
        function = self.functions["_translate"]
        self._result({"data": ["中文"], "fn_index": function._id, "session_hash": self.session, "event_data": None})

    def _result(self, body: dict[str, Any]) -> list[Any]:
        self.client.post("/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                if event.get("msg") == "process_completed":
                    output = event["output"]
                    return list(output["data"]) if event["success"] else [output["error"]]
        raise AssertionError("the queue ended")

    def upload(self, data: bytes) -> str:
        """Upload a file; returns its path on the server."""
        response = self.client.post("/upload", files={"files": ("mine.png", data)})
        (path,) = response.raise_for_status().json()
        return str(path)


@pytest.fixture(scope="module")
def blocks(demo_backends: DemoBackends) -> Iterator[gr.Blocks]:
    with running_page(demo_backends, "127.0.0.1", 0, CrossSiteRules(("photos.example",), ("https://photos.example",))) as blocks:
        yield blocks


@pytest.fixture
def private_image(demo_backends: DemoBackends, tmp_path: Path) -> Path:
    return Path(shutil.copy2(demo_backends.examples[0], tmp_path / "private.png"))


def test_every_handler_with_the_image_is_attacked_below(blocks: gr.Blocks) -> None:
    with_image = {str(f.name) for f in blocks.fns.values() if any(c.get_block_name() == "image" for c in f.inputs)}
    assert with_image == {*EVENTS, *COMPARING_EVENTS, "show", "click"}


def test_a_path_that_is_compared_is_not_opened(blocks: gr.Blocks, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for name in COMPARING_EVENTS:
        for path in (tmp_path / "fifo.png", Path("/dev/zero")):
            # A handler that opened one of these would not come back.
            assert Browser(blocks, f"{name} {path.name}").send(name, {"path": str(path)})[-1] == ""


def test_a_path_of_an_image_with_boxes_is_not_opened(blocks: gr.Blocks, private_image: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for path in (private_image, tmp_path / "fifo.png", Path("/dev/zero")):
        assert Browser(blocks, f"show {path.name}").send("show", {"path": str(path)})[0] is None
        click = {"index": [1, 2], "value": None}
        assert Browser(blocks, f"click {path.name}").send("click", {"path": str(path)}, event_data=click)[-1] == NOT_UPLOADED


@pytest.mark.parametrize("translated", [False, True], ids=["first language", "after a change of the language"])
def test_a_path_without_gradios_mark_is_not_opened(blocks: gr.Blocks, private_image: Path, tmp_path: Path, translated: bool) -> None:
    browser = Browser(blocks, f"attacker {translated}")
    if translated:
        browser.change_language()
    os.mkfifo(tmp_path / "fifo.png")
    for name in EVENTS:
        for path in (private_image, tmp_path / "none.png", tmp_path / "fifo.png", Path("/dev/zero")):
            assert browser.send(name, {"path": str(path), "orig_name": "a.png"})[-1] == NOT_UPLOADED, (name, path)


def test_a_url_is_not_fetched(blocks: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def download(*_: object, **__: object) -> str:
        raise AssertionError("a URL is fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    image = {"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    assert Browser(blocks, "fetcher").send("classify", image) == ["an image is uploaded, not fetched from a URL"]


def test_an_uploaded_file_is_opened(blocks: gr.Blocks, private_image: Path) -> None:
    browser = Browser(blocks, "user")
    path = browser.upload(private_image.read_bytes())
    for image in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path}):
        probabilities, status = browser.send("classify", image)
        assert {entry["label"] for entry in probabilities["confidences"]} == {"red", "blue"}
        assert status == ""


def test_an_example_is_opened(blocks: gr.Blocks) -> None:
    browser = Browser(blocks, "visitor")
    example = browser.functions["load_example"]
    ((image, *_),) = [browser._result({"data": [0], "fn_index": example._id, "session_hash": browser.session, "event_data": None})]
    value = image.get("value", image)
    assert browser.send("classify", value)[-1] == ""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "photos.example"}, 200),
        ({"Host": "photos.example", "Origin": "https://photos.example"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_sites_cannot_use_the_page(blocks: gr.Blocks, headers: dict[str, str], status: int) -> None:
    with httpx2.Client(base_url=blocks.local_url, timeout=TIMEOUT_SECONDS, headers=headers) as client:
        body = {"data": ["x", "English"], "fn_index": 0, "session_hash": "s"}
        sent = client.post("/gradio_api/queue/join", json=body)
        read = client.get("/config")
    assert (sent.status_code, read.status_code) == (status, status)
    if status == 403:
        assert sent.json()["error"]["code"] in ("host", "origin")
