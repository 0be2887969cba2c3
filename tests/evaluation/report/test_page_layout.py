"""Layout of report.html on a phone and on a desktop, in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.evaluation.conftest import Written
from tests.serving.demo.browser import CHROMIUM, DESKTOP_SIZE, PHONE_SIZE, TIMEOUT_MS, overflow

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


MAX_SCREENS = 10
SMALLEST_LETTERS = 9
"""In pixels."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=TIMEOUT_MS)
        yield browser
        browser.close()


def _open(browser: Browser, written: Written, size: tuple[int, int], **options: Any) -> Page:
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True, **options).new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(written.page.as_uri())
    return page


@pytest.fixture
def page(browser: Browser, written: Written) -> Page:
    """The report on a phone."""
    return _open(browser, written, PHONE_SIZE, has_touch=True, is_mobile=True)


@pytest.fixture
def desktop(browser: Browser, written: Written) -> Page:
    return _open(browser, written, DESKTOP_SIZE)


def _unfold_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")


def _cut(page: Page) -> list[str]:
    return list(
        page.evaluate(
            "[...document.querySelectorAll('.scroll, .wide, .system')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
        )
    )


def test_the_page_is_at_most_ten_screens_long(page: Page, desktop: Page) -> None:
    for shown, size in ((page, PHONE_SIZE), (desktop, DESKTOP_SIZE)):
        assert shown.evaluate("document.documentElement.scrollHeight") <= MAX_SCREENS * size[1]


def test_nothing_is_cut_on_a_desktop(desktop: Page) -> None:
    _unfold_all(desktop)
    desktop.locator("#more").click()
    assert _cut(desktop) == []
    assert overflow(desktop) <= 0


def test_what_is_cut_on_a_phone_has_a_shadow(page: Page) -> None:
    _unfold_all(page)
    assert len(_cut(page)) > 3, "nothing to look at"
    plain = "[...document.querySelectorAll('.scroll, .wide')].filter(e => !getComputedStyle(e).backgroundImage.includes('gradient')).length"
    assert page.evaluate(plain) == 0


def test_charts_follow_the_color_scheme(browser: Browser, written: Written) -> None:
    colors = {
        scheme: _open(browser, written, DESKTOP_SIZE, color_scheme=scheme).evaluate(
            "[getComputedStyle(document.querySelector('.charts svg text')).fill, getComputedStyle(document.body).color]"
        )
        for scheme in ("light", "dark")
    }
    for chart, page in colors.values():
        assert chart == page
    assert colors["light"] != colors["dark"]


def test_the_page_is_no_wider_than_the_phone(page: Page) -> None:
    _unfold_all(page)
    assert overflow(page) <= 0


def test_letters_of_charts_are_readable(page: Page, desktop: Page) -> None:
    for shown in (page, desktop):
        _unfold_all(shown)
        sizes = shown.evaluate(
            "[...document.querySelectorAll('.charts svg text')].map(t => [getComputedStyle(t).fontSize, t.getScreenCTM()])"
            ".map(([size, matrix]) => parseFloat(size) * Math.hypot(matrix.c, matrix.d))"
        )
        assert len(sizes) > 50
        # Text may be rotated.
        assert min(sizes) >= SMALLEST_LETTERS


def test_a_link_unfolds_its_section(page: Page) -> None:
    chart = page.locator(".charts svg").first
    assert not chart.is_visible()
    page.locator("nav a", has_text="charts").tap()
    assert chart.is_visible()


def test_the_first_column_of_a_table_stays_in_view(page: Page) -> None:
    _unfold_all(page)
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

    assert (num_visible(), page.locator("#count").inner_text()) == (3, "3 of 24 shown")
    page.locator("#more").tap()
    assert (num_visible(), page.locator("#count").inner_text()) == (23, "23 of 24 shown")
    page.locator("#more").tap()
    assert (num_visible(), page.locator("#more").is_visible()) == (24, False)
    page.locator("#chips button[data-status=broken]").tap()
    assert (num_visible(), page.locator("#count").inner_text()) == (1, "1 shown")
    page.locator("#chips button[data-status='']").tap()
    assert num_visible() == 3
    page.locator("#more").tap()
    page.fill("#search", "圆形")
    assert 0 < num_visible() < 24
    page.fill("#search", "圆形 nowhere")
    assert num_visible() == 0
    page.fill("#search", "")
    page.select_option("#category", "counting")
    assert 0 < num_visible() < 24
    page.select_option("#category", "")
    assert page.locator("#count").inner_text() == "3 of 24 shown"
