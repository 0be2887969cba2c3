"""What the page's buttons do, and what it says where they cannot."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from answering.rerank.confidence import Credibility
from answering.rerank.logistic_regression import Logistic
from serving.demo.page import LANGUAGES, Page, Parts, _percent, _short, words
from serving.demo.session import Talker, _request, rows
from serving.search.image_index import PictureIndex


@pytest.fixture
def page(demo_parts: Parts) -> Page:
    return Page(demo_parts)


@pytest.fixture
def picture(demo_parts: Parts) -> str:
    return str(demo_parts.examples[0])


def shape(value: object) -> object:
    """Keys, lists by their length, and the names that are filled in."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return len(value)
    return sorted(name for name in ("reason", "share", "number") if f"{{{name}}}" in str(value))


def test_both_languages_have_the_same_words() -> None:
    assert shape(words("en")) == shape(words("zh"))
    changed = [key for key, value in words("en").items() if value == words("zh")[key]]
    assert changed == ["title"]


def test_an_answer_comes_piece_by_piece_and_then_with_its_candidates(page: Page, picture: str) -> None:
    *coming, (chat, turns, table, question, status) = page.ask(picture, "What color?", [], "English")
    assert coming
    texts = [update[0][-1]["content"] for update in coming]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert (question, status) == ("", "")
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert turns == [("What color?", chat[1]["content"])]
    assert table["headers"] == words("en")["columns"]
    chosen = [row for row in table["data"] if row[0]]
    assert chosen[0][1].strip() == turns[0][1] or turns[0][1] == "unknown"
    fused = [float(row[4]) for row in table["data"]]
    assert fused == sorted(fused, reverse=True)
    assert all(re.fullmatch(r"(< 0\.1|\d{1,2}\.\d|100\.0) %", row[2]) for row in table["data"])


def test_turns_about_a_picture_stand_in_one_conversation(page: Page, picture: str) -> None:
    first = list(page.ask(picture, "What color?", [], "English"))[-1]
    second = list(page.ask(picture, "有几个圆形？", first[1], "English"))[-1]
    assert [message["role"] for message in second[0]] == ["user", "assistant"] * 2
    assert len(second[1]) == 2
    request = _request(Path(picture), [("a?", "b"), ("c?", "d")], "两个？", "vqa")
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("user", "<image>\na?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "两个？"),
    ]  # fmt: skip
    assert (request.language, len(request.pictures)) == ("zh", 1)


def test_a_picture_is_described(page: Page, picture: str) -> None:
    chat, turns, table, _, status = list(page.caption(picture, [], "中文"))[-1]
    assert chat[0]["content"] == words("zh")["caption_question"]
    assert (len(turns), table, status) == (1, {"headers": words("zh")["columns"], "data": []}, "")


def test_two_systems_answer_side_by_side(page: Page, picture: str) -> None:
    ours, theirs, *tables, status = page.compare(picture, "What color?", "English")
    talkers = (page.parts.talker, page.parts.other)
    expected = [talker.ask(Path(picture), [], "What color?") for talker in talkers if isinstance(talker, Talker)]
    assert [ours, theirs] == [one.chosen for one in expected]
    assert [[row[1] for row in table["data"]] for table in tables] == [[row.text for row in rows(one)] for one in expected]
    assert tables[0] != tables[1], "two systems, not one twice"
    assert status == ""


def test_what_an_evaluation_taught_of_the_credibility_is_shown(page: Page, picture: str) -> None:
    talker = page.parts.talker
    assert isinstance(talker, Talker) and talker.reranker is not None
    plan = replace(talker.reranker.plan, credibility=Credibility(Logistic(("agreement",), (0.0,), math.log(3))))
    trusted = Talker("ours", talker.answerer, replace(talker.reranker, plan=plan), talker.decoding, 6)
    for language, sentence in (("English", "How likely the answer is right: 75%"), ("中文", "答案正确的可能性：75%")):
        shown = Page(replace(page.parts, talker=trusted))
        assert list(shown.ask(picture, "What?", [], language))[-1][-1] == sentence
        assert shown.compare(picture, "What?", language)[-1] == f"ours: {sentence}"


def test_long_names_keep_their_ends() -> None:
    assert [_short(name) for name in ("0.png", "3f786850e387", "000400000001.jpg")] == ["0.png", "3f786850e387", "…000001.jpg"]


def test_probabilities_are_shown_for_people() -> None:
    assert [_percent(value) for value in (None, 0.0, 0.0004, 0.0126, 1.0)] == ["–", "< 0.1 %", "< 0.1 %", "1.3 %", "100.0 %"]


def test_pictures_are_found_by_text_and_by_picture(page: Page, picture: str) -> None:
    found, status = page.search_text("一个红色的圆形", "English")
    assert (len(found), status) == (4, "")
    found, _ = page.search_picture(picture, "English")
    assert found[0][1] == "1.000  0.png"


def test_a_picture_that_vanished_takes_no_other_with_it(page: Page, demo_parts: Parts, tmp_path: Path) -> None:
    index = demo_parts.index
    assert isinstance(index, PictureIndex)
    first, *others = index.search_text("a", 100)
    assert first.path is not None
    away = first.path.rename(tmp_path / "away.png")
    try:
        for language in LANGUAGES:
            found, status = page.search_text("a", language)
            assert len(found) == len(others)
            assert status == f"⚠️ {words(LANGUAGES[language])['gone'].format(number=1)}"
    finally:
        away.rename(first.path)


def test_labels_get_shares(page: Page, picture: str) -> None:
    shares, status = page.classify(picture, "cat， dog,鸟", "English")
    assert set(shares) == {"cat", "dog", "鸟"}
    assert sum(shares.values()) == pytest.approx(1)
    assert status == ""


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_what_is_missing_is_said_in_a_sentence(page: Page, picture: str, language: str, tmp_path: Path) -> None:
    of = words(LANGUAGES[language])
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    bare = Page(Parts("there is no checkpoint", None, None, "there is no index", []))
    said = {
        "no_picture": list(page.ask(None, "a?", [], language))[-1][-1],
        "no_question": list(page.ask(picture, " ", [], language))[-1][-1],
        "not_picture": list(page.caption(str(text), [], language))[-1][-1],
        "no_model": list(bare.ask(picture, "a?", [], language))[-1][-1],
        "no_search": bare.search_text("a", language)[-1],
        "no_text": page.search_text(" ", language)[-1],
        "no_clip": bare.classify(picture, "a", language)[-1],
        "no_labels": page.classify(picture, ",", language)[-1],
        "no_other": Page(replace(page.parts, other=None)).compare(picture, "a?", language)[-1],
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
        any(value == word for word in words("zh").values()) for update in updates for name, value in update.items() if name != "__type__"
    )
    component, _ = page.translated[0]
    assert component.value == words("en")["title"]
