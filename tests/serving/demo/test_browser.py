"""The page in a real Chromium: a person uploads, asks, switches the language, searches; nothing leaves the machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from serving.demo.page import Parts, launch, words
from tests.serving.search.conftest import png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (the package chromium)")

PATIENCE = 120_000
"""Milliseconds after which something that must be seen is not there: on a busy machine much is slow."""


@pytest.fixture(scope="module")
def address(demo_parts: Parts) -> Iterator[str]:
    blocks = launch(demo_parts, "127.0.0.1", 0, wait=False)
    yield blocks.local_url
    blocks.close()


@pytest.fixture
def asked_for() -> list[str]:
    """Hosts that the browser spoke to."""
    return []


@pytest.fixture
def page(address: str, asked_for: list[str]) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked_for.append(urlsplit(request.url).hostname or ""))
        page.goto(address, wait_until="domcontentloaded")
        page.locator("#question textarea").wait_for()
        yield page
        browser.close()


def test_a_person_asks_switches_the_language_and_searches(page: Page, demo_parts: Parts, tmp_path: Path, asked_for: list[str]) -> None:
    assert not isinstance(demo_parts.talker, str)
    expect.set_options(timeout=PATIENCE)
    english, chinese = words("en"), words("zh")
    # Nothing chosen yet: a sentence, no stack trace.
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text(english["no_picture"])

    picture = tmp_path / "mine.png"
    picture.write_bytes(png(2))
    page.locator("#picture input[type=file]").first.set_input_files(picture)
    expect(page.locator("#picture img").first).to_be_visible()
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text(english["no_question"])
    page.locator("#question textarea").fill("What color is the circle?")
    page.locator("#ask").click()
    answered = demo_parts.talker.ask(picture, [], "What color is the circle?")
    # The whole answer is there when its candidates are.
    expect(page.locator("#candidates")).to_contain_text("✓")
    expect(page.locator("#candidates")).to_contain_text(english["columns"][2])
    expect(page.locator("#chat")).to_contain_text(answered.chosen.split()[0] if answered.chosen.split() else "")
    expect(page.locator("#chat")).to_contain_text("What color is the circle?")

    page.locator("#language").get_by_text("中文").click()
    expect(page.locator("#ask")).to_have_text(chinese["ask"])
    expect(page.locator("#candidates")).to_contain_text(chinese["columns"][2])
    expect(page.locator("#candidates")).to_contain_text("✓")

    page.get_by_role("tab", name=chinese["search_tab"]).click()
    page.locator("#search_text textarea").fill("一个红色的圆形")
    page.locator("#search").click()
    expect(page.locator("#results img").first).to_be_visible()
    assert page.locator("#results .thumbnail-item, #results button.thumbnail-lg").count() == 4
    if folder := os.environ.get("TESSERA_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "demo_search.png")
        page.get_by_role("tab", name=chinese["ask_tab"]).click()
        page.screenshot(path=Path(folder) / "demo_ask.png", full_page=True)
    assert set(asked_for) <= {"127.0.0.1", "localhost", ""}
