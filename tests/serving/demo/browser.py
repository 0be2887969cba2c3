"""Chromium for tests of web pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

TIMEOUT_MS = 120_000
"""Timeout of every wait in ms; long, since a busy machine is slow."""

DESKTOP_SIZE, PHONE_SIZE = (1280, 1000), (390, 844)
"""Sizes of a window in pixels."""


@contextmanager
def open_page(address: str, size: tuple[int, int] = DESKTOP_SIZE, locale: str = "en-US") -> Iterator[Page]:
    """Open the demo page at a URL and wait until it is ready. Fails at the end if the browser sent a request to another host.

    locale: language of the browser.
    """
    requested_hosts: set[str] = set()
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, has_touch=size == PHONE_SIZE, locale=locale)
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: requested_hosts.add(urlsplit(request.url).hostname or ""))
        page.goto(address, wait_until="domcontentloaded")
        page.locator("#question textarea").wait_for()
        yield page
        browser.close()
    assert requested_hosts <= {"127.0.0.1", "localhost", ""}, requested_hosts


def upload_image(page: Page, image: Path) -> None:
    """Upload an image."""
    page.locator("#image input[type=file]").first.set_input_files(image)
    expect(page.locator("#image img").first).to_be_visible()


def save_screenshot(page: Page, name: str) -> None:
    """Save a screenshot to the folder that TESSERA_SCREENSHOTS names, if it is set."""
    if folder := os.environ.get("TESSERA_SCREENSHOTS"):
        # Wait until animations have ended; no test depends on it.
        page.wait_for_timeout(700)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
