"""Layout of report.html on a phone, in a real browser."""

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


def test_charts_are_not_scaled_below_readable_size(page: Page) -> None:
    """Charts are rendered at 150 dpi: at a scale of .55, letters of 8 points are 9 pixels."""
    scales = page.evaluate("[...document.querySelectorAll('.charts img')].map(i => (i.loading = 'eager', i.width / i.naturalWidth))")
    assert len(scales) == 5
    assert min(scales) >= 0.54


def test_the_first_column_of_a_table_stays_in_view(page: Page) -> None:
    table = page.locator(".scroll", has_text="McNemar p").first
    table.evaluate("table => table.scrollLeft = 10000")
    assert table.evaluate("table => table.scrollLeft") > 100
    name = table.locator("tbody tr td").first
    offset = name.evaluate("cell => cell.getBoundingClientRect().left - cell.closest('.scroll').getBoundingClientRect().left")
    assert abs(offset) < 2


def test_the_choices_of_a_candidate_are_visible_without_scrolling(page: Page) -> None:
    tags = page.locator(".candidates .tag")
    assert tags.count() > 24
    ends = page.evaluate("[...document.querySelectorAll('.candidates .tag')].map(tag => tag.getBoundingClientRect().right)")
    assert max(ends) <= PHONE_SIZE[0]


def test_search_and_filters_select_questions(page: Page) -> None:
    def num_visible() -> int:
        return int(page.locator("article.card:visible").count())

    assert num_visible() == 24
    page.locator("#chips button[data-status=broken]").tap()
    assert (num_visible(), page.locator("#count").inner_text()) == (1, "1 listed")
    page.locator("#chips button[data-status='']").tap()
    page.fill("#search", "圆形")
    assert 0 < num_visible() < 24
    page.fill("#search", "圆形 nowhere")
    assert num_visible() == 0
    page.fill("#search", "")
    page.select_option("#category", "counting")
    assert 0 < num_visible() < 24
    page.select_option("#category", "")
    assert num_visible() == 24
