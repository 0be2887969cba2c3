"""What the page's buttons do, and what it says where they cannot."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from serving.demo.page import LANGUAGES, DemoBackends, Page, _percent, _shorten, translations
from serving.demo.session import Session, _request, candidate_rows
from serving.search.image_index import ImageIndex


@pytest.fixture
def page(demo_parts: DemoBackends) -> Page:
    return Page(demo_parts)


@pytest.fixture
def image(demo_parts: DemoBackends) -> str:
    return str(demo_parts.examples[0])


def shape(value: object) -> object:
    """Keys, lists by their length, and the names that are filled in."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return len(value)
    return sorted(name for name in ("reason", "share", "number") if f"{{{name}}}" in str(value))


def test_both_languages_have_the_same_words() -> None:
    assert shape(translations("en")) == shape(translations("zh"))
    changed = [key for key, value in translations("en").items() if value == translations("zh")[key]]
    assert changed == ["title"]


def test_an_answer_comes_piece_by_piece_and_then_with_its_candidates(page: Page, image: str) -> None:
    *coming, (chat, turns, table, question, status) = page.ask(image, "What color?", [], "English")
    assert coming
    texts = [update[0][-1]["content"] for update in coming]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert (question, status) == ("", "")
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert turns == [("What color?", chat[1]["content"])]
    assert table["headers"] == translations("en")["columns"]
    chosen = [row for row in table["data"] if row[0]]
    assert chosen[0][1].strip() == turns[0][1] or turns[0][1] == "unknown"
    fused = [float(row[4]) for row in table["data"]]
    assert fused == sorted(fused, reverse=True)
    assert all(re.fullmatch(r"(< 0\.1|\d{1,2}\.\d|100\.0) %", row[2]) for row in table["data"])


def test_turns_about_a_image_stand_in_one_conversation(page: Page, image: str) -> None:
    first = list(page.ask(image, "What color?", [], "English"))[-1]
    second = list(page.ask(image, "有几个圆形？", first[1], "English"))[-1]
    assert [message["role"] for message in second[0]] == ["user", "assistant"] * 2
    assert len(second[1]) == 2
    request = _request(Path(image), [("a?", "b"), ("c?", "d")], "两个？", "vqa")
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("user", "<image>\na?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "两个？"),
    ]  # fmt: skip
    assert (request.language, len(request.images)) == ("zh", 1)


def test_a_image_is_described(page: Page, image: str) -> None:
    chat, turns, table, _, status = list(page.caption(image, [], "中文"))[-1]
    assert chat[0]["content"] == translations("zh")["caption_question"]
    assert (len(turns), table, status) == (1, {"headers": translations("zh")["columns"], "data": []}, "")


def test_two_systems_answer_side_by_side(page: Page, image: str) -> None:
    ours, theirs, *tables, status = page.compare(image, "What color?", "English")
    talkers = (page.parts.session, page.parts.other)
    expected = [session.ask(Path(image), [], "What color?") for session in talkers if isinstance(session, Session)]
    assert [ours, theirs] == [one.chosen for one in expected]
    assert [[row[1] for row in table["data"]] for table in tables] == [[row.text for row in candidate_rows(one)] for one in expected]
    assert tables[0] != tables[1], "two systems, not one twice"
    assert status == ""


def test_what_an_evaluation_taught_of_the_confidence_is_shown(page: Page, image: str) -> None:
    session = page.parts.session
    assert isinstance(session, Session) and session.reranker is not None
    plan = replace(session.reranker.plan, confidence=Confidence(LogisticModel(("agreement",), (0.0,), math.log(3))))
    trusted = Session("ours", session.answerer, replace(session.reranker, plan=plan), session.decoding, 6)
    for language, sentence in (("English", "How likely the answer is right: 75%"), ("中文", "答案正确的可能性：75%")):
        shown = Page(replace(page.parts, session=trusted))
        assert list(shown.ask(image, "What?", [], language))[-1][-1] == sentence
        assert shown.compare(image, "What?", language)[-1] == f"ours: {sentence}"


def test_long_names_keep_their_ends() -> None:
    assert [_shorten(name) for name in ("0.png", "3f786850e387", "000400000001.jpg")] == ["0.png", "3f786850e387", "…000001.jpg"]


def test_probabilities_are_shown_for_people() -> None:
    assert [_percent(value) for value in (None, 0.0, 0.0004, 0.0126, 1.0)] == ["–", "< 0.1 %", "< 0.1 %", "1.3 %", "100.0 %"]


def test_images_are_found_by_text_and_by_image(page: Page, image: str) -> None:
    found, status = page.search_by_text("一个红色的圆形", "English")
    assert (len(found), status) == (4, "")
    found, _ = page.search_by_image(image, "English")
    assert found[0][1] == "1.000  0.png"


def test_a_image_that_vanished_takes_no_other_with_it(page: Page, demo_parts: DemoBackends, tmp_path: Path) -> None:
    index = demo_parts.index
    assert isinstance(index, ImageIndex)
    first, *others = index.search_by_text("a", 100)
    assert first.path is not None
    away = first.path.rename(tmp_path / "away.png")
    try:
        for language in LANGUAGES:
            found, status = page.search_by_text("a", language)
            assert len(found) == len(others)
            assert status == f"⚠️ {translations(LANGUAGES[language])['gone'].format(number=1)}"
    finally:
        away.rename(first.path)


def test_labels_get_shares(page: Page, image: str) -> None:
    shares, status = page.classify(image, "cat， dog,鸟", "English")
    assert set(shares) == {"cat", "dog", "鸟"}
    assert sum(shares.values()) == pytest.approx(1)
    assert status == ""


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_what_is_missing_is_said_in_a_sentence(page: Page, image: str, language: str, tmp_path: Path) -> None:
    of = translations(LANGUAGES[language])
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    bare = Page(DemoBackends("there is no checkpoint", None, None, "there is no index", []))
    said = {
        "no_picture": list(page.ask(None, "a?", [], language))[-1][-1],
        "no_question": list(page.ask(image, " ", [], language))[-1][-1],
        "not_picture": list(page.caption(str(text), [], language))[-1][-1],
        "no_model": list(bare.ask(image, "a?", [], language))[-1][-1],
        "no_search": bare.search_by_text("a", language)[-1],
        "no_text": page.search_by_text(" ", language)[-1],
        "no_clip": bare.classify(image, "a", language)[-1],
        "no_labels": page.classify(image, ",", language)[-1],
        "no_other": Page(replace(page.parts, other=None)).compare(image, "a?", language)[-1],
    }
    for key, sentence in said.items():
        beginning = of[key].partition("{")[0]
        assert sentence.startswith(f"⚠️ {beginning}"), key
        assert "Traceback" not in sentence
        assert "{" not in sentence


def test_the_page_is_built_and_every_word_changes_with_the_language(page: Page) -> None:
    page.build()
    updates = page._translate("中文")
    assert len(updates) == len(page.translated) > 20
    assert all(
        any(value == word for word in translations("zh").values())
        for update in updates
        for name, value in update.items()
        if name != "__type__"
    )
    component, _ = page.translated[0]
    assert component.value == translations("en")["title"]
