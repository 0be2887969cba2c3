"""The report as it is seen on a phone, in a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.evaluation.conftest import Written
from tests.serving.demo.browser import CHROMIUM, PHONE_SIZE, TIMEOUT_MS, overflow

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(written: Written) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=TIMEOUT_MS)
        context = browser.new_context(
            viewport={"width": PHONE_SIZE[0], "height": PHONE_SIZE[1]}, has_touch=True, is_mobile=True, offline=True
        )
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(written.page.as_uri())
        yield page
        browser.close()


def test_the_page_is_no_wider_than_the_phone(page: Page) -> None:
    assert overflow(page) <= 0


def test_letters_of_charts_stay_readable(page: Page) -> None:
    """Charts are drawn at 150 dots an inch: at .55 of that, letters of 8 points are 9 pixels."""
    shares = page.evaluate("[...document.querySelectorAll('.charts img')].map(i => (i.loading = 'eager', i.width / i.naturalWidth))")
    assert len(shares) == 5
    assert min(shares) >= 0.54


def test_the_name_of_a_row_stays_beside_its_numbers(page: Page) -> None:
    table = page.locator(".scroll", has_text="McNemar p").first
    table.evaluate("table => table.scrollLeft = 10000")
    assert table.evaluate("table => table.scrollLeft") > 100
    name = table.locator("tbody tr td").first
    moved = name.evaluate("cell => cell.getBoundingClientRect().left - cell.closest('.scroll').getBoundingClientRect().left")
    assert abs(moved) < 2


def test_what_took_a_candidate_is_seen_without_pushing(page: Page) -> None:
    tags = page.locator(".candidates .tag")
    assert tags.count() > 24
    ends = page.evaluate("[...document.querySelectorAll('.candidates .tag')].map(tag => tag.getBoundingClientRect().right)")
    assert max(ends) <= PHONE_SIZE[0]


def test_search_and_filters_leave_what_is_asked_for(page: Page) -> None:
    def shown() -> int:
        return int(page.locator("article.card:visible").count())

    assert shown() == 24
    page.locator("#chips button[data-status=broken]").tap()
    assert (shown(), page.locator("#count").inner_text()) == (1, "1 shown")
    page.locator("#chips button[data-status='']").tap()
    page.fill("#search", "圆形")
    assert 0 < shown() < 24
    page.fill("#search", "圆形 nowhere")
    assert shown() == 0
    page.fill("#search", "")
    page.select_option("#category", "counting")
    assert 0 < shown() < 24
    page.select_option("#category", "")
    assert shown() == 24
