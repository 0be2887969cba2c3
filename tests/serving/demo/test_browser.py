"""The page in Chromium: upload, ask, compare, classify, search, switch the language; no request leaves the machine."""

import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from answering.reply import Reply
from serving.demo.localization import notes_text, translations
from serving.demo.page import running_page
from serving.demo.page_actions import DemoBackends
from serving.demo.session import Session, Turn, answered_turn
from serving.http.cross_site import CrossSiteRules
from tests.serving.demo.browser import CHROMIUM, DESKTOP_SIZE, PHONE_SIZE, TIMEOUT_MS, open_page, overflow, save_screenshot, upload_image
from tests.serving.search.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (the package chromium)")]
ENGLISH, CHINESE = translations("en"), translations("zh")
QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def address(demo_backends: DemoBackends) -> Iterator[str]:
    with running_page(demo_backends, "127.0.0.1", 0, CrossSiteRules()) as blocks:
        yield blocks.local_url


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "mine.png"
    path.write_bytes(png(2))
    return path


@pytest.fixture
def other_image(tmp_path: Path) -> Path:
    path = tmp_path / "other.png"
    path.write_bytes(png(3))
    return path


def first_word(text: str) -> str:
    """The first word of a text, which Markdown does not change."""
    return (text.split() or [""])[0]


def test_a_user_asks_several_questions_and_switches_the_language(address: str, demo_backends: DemoBackends, image: Path) -> None:
    session = demo_backends.session
    assert isinstance(session, Session)
    with open_page(address) as page:
        # No image is chosen yet: a message, no stack trace.
        page.locator("#ask").click()
        expect(page.locator("#status")).to_contain_text(ENGLISH["no_image"])
        upload_image(page, image)
        page.locator("#ask").click()
        expect(page.locator("#status")).to_contain_text(ENGLISH["no_question"])

        page.locator("#question textarea").fill(QUESTION)
        page.locator("#ask").click()
        first = session.ask(image, [], QUESTION)
        # The answer is complete when its candidates are shown.
        expect(page.locator("#candidates")).to_contain_text("✓")
        for row in first.candidates():
            expect(page.locator("#candidates")).to_contain_text(first_word(row["text"]))
        expect(page.locator("#chat")).to_contain_text(first_word(first.chosen))
        expect(page.locator("#chat")).to_contain_text(QUESTION)
        expect(page.locator("#status")).to_have_text("")

        page.locator("#question textarea").fill("有几个圆形？")
        page.locator("#question textarea").press("Enter")
        second = session.ask(image, [Turn(QUESTION, first.chosen)], "有几个圆形？")
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(2)
        expect(page.locator("#chat")).to_contain_text(first_word(second.chosen))
        expect(page.locator("#question textarea")).to_have_value("")
        save_screenshot(page, "untrained_ask")

        page.locator("#language").get_by_text("中文").click()
        expect(page.locator("#ask")).to_have_text(CHINESE["ask"])
        expect(page.locator("#candidates")).to_contain_text(CHINESE["candidate_columns"][2])
        expect(page.locator("#candidates")).to_contain_text("✓")

        page.locator("#caption").click()
        expect(page.locator("#chat")).to_contain_text(CHINESE["caption_question"])
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(3)
        save_screenshot(page, "untrained_ask_zh")
        page.locator("#clear").click()
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(0)
        assert overflow(page) == 0


def test_a_file_that_is_not_an_image_is_a_message_on_the_page(address: str, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("notes.png", "cut.png")}
    files["notes.png"].write_text("not an image", encoding="utf-8")
    files["cut.png"].write_bytes(png(2)[:-40])
    message = ENGLISH["invalid_image"].partition("{")[0]
    with open_page(address) as page:
        for name, path in files.items():
            page.locator("#image input[type=file]").first.set_input_files(path)
            page.locator("#image").get_by_label("Remove Image").or_(page.locator("#image img")).first.wait_for(state="attached")
            page.locator("#question textarea").fill(QUESTION)
            page.locator("#ask").click()
            expect(page.locator("#status"), name).to_contain_text(message)
            expect(page.locator("#chat [data-testid=bot]")).to_have_count(0)
            page.reload(wait_until="domcontentloaded")
            page.locator("#question textarea").wait_for()


def test_two_systems_answer_side_by_side(address: str, demo_backends: DemoBackends, image: Path, other_image: Path) -> None:
    sessions = [demo_backends.session, demo_backends.other]
    with open_page(address) as page:
        page.get_by_role("tab", name=ENGLISH["compare_tab"]).click()
        page.locator("#compare").click()
        expect(page.locator("#status")).to_contain_text(ENGLISH["no_image"])
        upload_image(page, image)
        page.locator("#compared_question textarea").fill(QUESTION)
        page.locator("#compared_question textarea").press("Enter")
        for i, session in enumerate(sessions):
            assert isinstance(session, Session)
            expect(page.locator(f"#answer_{i} textarea")).to_have_value(session.ask(image, [], QUESTION).chosen)
            expect(page.locator(f"#answer_{i}")).to_contain_text(session.name)
            expect(page.locator(f"#compared_{i}")).to_contain_text("✓")
            expect(page.locator(f"#note_{i}")).to_have_text(
                notes_text(answered_turn(QUESTION, session.ask(image, [], QUESTION)), "English")
            )
        save_screenshot(page, "untrained_compare")
        # Answers about another image go.
        upload_image(page, other_image)
        expect(page.locator("#answer_0 textarea")).to_have_value("")
        expect(page.locator("#note_0")).to_have_text("")
        expect(page.locator("#compared_0")).not_to_contain_text("✓")


def test_labels_get_probabilities_and_images_are_found(address: str, demo_backends: DemoBackends, image: Path) -> None:
    assert demo_backends.scorer is not None
    with open_page(address) as page:
        upload_image(page, image)
        page.get_by_role("tab", name=ENGLISH["labels_tab"]).click()
        page.locator("#classify").click()
        expect(page.locator("#status")).to_contain_text(ENGLISH["no_labels"])
        labels = ["a circle", "a square", "一个星形"]
        page.locator("#labels textarea").fill(", ".join(labels))
        page.locator("#labels textarea").press("Enter")
        probabilities = demo_backends.scorer.probabilities(image, labels)
        for label, probability in zip(labels, probabilities, strict=True):
            expect(page.locator("#label_probabilities")).to_contain_text(label)
            expect(page.locator("#label_probabilities")).to_contain_text(f"{probability:.0%}")
        expect(page.locator("#label_probabilities h2")).to_have_text(max(zip(probabilities, labels, strict=True))[1])
        save_screenshot(page, "untrained_labels")

        page.get_by_role("tab", name=ENGLISH["search_tab"]).click()
        page.locator("#search_text textarea").fill("一个红色的圆形")
        page.locator("#search_text textarea").press("Enter")
        expect(page.locator("#results img")).to_have_count(4)
        names = page.locator("#results .caption-label")
        for i in range(4):
            assert names.nth(i).evaluate("e => [e.scrollWidth - e.clientWidth, e.scrollHeight - e.clientHeight]") == [0, 0], "cut"
            found_image = page.locator("#results img").nth(i).bounding_box()
            caption = names.nth(i).bounding_box()
            assert found_image is not None and caption is not None
            assert caption["y"] >= found_image["y"] + found_image["height"] - 1, "the name covers the image"
        save_screenshot(page, "untrained_search")
        page.locator("#search_by_image").click()
        # The image itself is in the index and comes first.
        expect(page.locator("#results .caption-label").first).to_contain_text("1.000 · 2.png")


def test_on_a_phone_the_page_fits_and_messages_are_in_view(address: str, image: Path) -> None:
    with open_page(address, PHONE_SIZE) as page:
        upload_image(page, image)
        page.locator("#ask").scroll_into_view_if_needed()
        page.locator("#ask").tap()
        expect(page.locator("#status")).to_contain_text(ENGLISH["no_question"])
        expect(page.locator("#status p")).to_be_in_viewport()
        page.locator("#question textarea").fill(QUESTION)
        page.locator("#ask").tap()
        expect(page.locator("#candidates")).to_contain_text("✓")
        assert overflow(page) == 0
        save_screenshot(page, "untrained_phone")


@pytest.mark.parametrize("size", [DESKTOP_SIZE, PHONE_SIZE])
def test_a_person_draws_a_box_and_asks_about_it(address: str, image: Path, size: tuple[int, int]) -> None:
    with open_page(address, size) as page:
        upload_image(page, image)
        page.locator("#boxes_panel button").first.click()
        preview = page.locator("#boxes img")
        expect(preview).to_be_visible()
        preview.scroll_into_view_if_needed()

        def click(column: float, row: float) -> None:
            before, area = preview.get_attribute("src"), preview.bounding_box()
            assert area is not None
            preview.click(position={"x": column * area["width"], "y": row * area["height"]})
            # Shown with the corner, then with the box.
            expect(preview).not_to_have_attribute("src", str(before))

        click(0.25, 0.25)
        click(0.75, 0.5)
        typed = page.locator("#box textarea, #box input")
        expect(typed).to_have_value(re.compile(r"\[\d+, \d+, \d+, \d+\]"))
        marked = [int(number) for number in re.findall(r"\d+", typed.input_value())]
        assert marked == pytest.approx([250, 250, 750, 500], abs=8)
        page.locator("#question textarea").fill("What is in")
        page.locator("#insert_box").click()
        expect(page.locator("#question textarea")).to_have_value(f"What is in {typed.input_value()}")
        save_screenshot(page, f"untrained_box_{size[0]}")
        # With the keyboard alone.
        typed.fill("10 20")
        typed.press("Enter")
        expect(page.locator("#status")).to_contain_text("10 20")
        typed.fill("[10, 20, 300, 400]")
        typed.press("Enter")
        expect(page.locator("#question textarea")).to_have_value(re.compile(r"\[10, 20, 300, 400\]$"))
        page.locator("#locate").click()
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(1)
        assert overflow(page) == 0


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_phone_every_tab_can_be_reached(address: str, locale: str) -> None:
    texts = CHINESE if locale == "zh-CN" else ENGLISH
    with open_page(address, PHONE_SIZE, locale) as page:
        for tab, shown in (("compare", "#compare"), ("search", "#search"), ("labels", "#classify"), ("ask", "#ask")):
            page.get_by_role("tab", name=texts[f"{tab}_tab"], exact=True).tap()
            expect(page.locator(shown)).to_be_visible()


@pytest.mark.parametrize(("locale", "texts"), [("zh-TW", CHINESE), ("de-DE", ENGLISH)])
def test_the_language_of_the_browser_decides_the_first_one(address: str, locale: str, texts: dict[str, str]) -> None:
    with open_page(address, locale=locale) as page:
        expect(page.locator("#ask")).to_have_text(texts["ask"])
        expect(page.locator("#chat")).to_contain_text(texts["chat_placeholder"])


class WaitingSession(Session):
    """A session whose answers wait until they are released."""

    released: threading.Event

    def ask(self, *arguments: Any) -> Reply:
        assert self.released.wait(TIMEOUT_MS / 1000)
        return super().ask(*arguments)


def test_a_new_conversation_is_not_disturbed_by_a_late_answer(demo_backends: DemoBackends, image: Path) -> None:
    ours = demo_backends.session
    assert isinstance(ours, Session)
    waiting = WaitingSession("ours", ours.answerer, ours.reranker, ours.decoding, 6)
    waiting.released = threading.Event()
    with (
        running_page(dataclasses.replace(demo_backends, session=waiting), "127.0.0.1", 0, CrossSiteRules()) as blocks,
        open_page(blocks.local_url) as page,
    ):
        upload_image(page, image)
        page.locator("#question textarea").fill(QUESTION)
        page.locator("#ask").click()
        # The streamed answer is there, its candidates are not.
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(1)
        page.locator("#clear").click()
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(0)
        waiting.released.set()
        page.wait_for_timeout(1500)
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(0)
        expect(page.locator("#candidates")).not_to_contain_text("✓")
        page.locator("#question textarea").fill("有几个圆形？")
        page.locator("#ask").click()
        expect(page.locator("#candidates")).to_contain_text("✓")
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(1)
        expect(page.locator("#chat")).not_to_contain_text(QUESTION)
