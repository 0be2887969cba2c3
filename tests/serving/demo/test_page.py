"""The actions of the page's buttons, and its messages if an action is impossible."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from serving.demo.formatting import percent, shorten
from serving.demo.localization import LANGUAGES, translations
from serving.demo.page import DemoBackends, Page
from serving.demo.session import Session, Turn, _request, candidate_rows
from serving.search.image_index import ImageIndex


def shape(value: object) -> object:
    """Keys, lengths of lists, and names of placeholders."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return len(value)
    return sorted(name for name in ("reason", "probability", "number") if f"{{{name}}}" in str(value))


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    assert shape(translations("en")) == shape(translations("zh"))
    untranslated = [key for key, value in translations("en").items() if value == translations("zh")[key]]
    assert untranslated == ["title"]


def test_an_answer_is_streamed_and_then_shown_with_its_candidates(page: Page, image: str) -> None:
    *streamed, (chat, turns, table, question, status) = page.ask(image, "What color?", [], "English")
    assert streamed
    texts = [update[0][-1]["content"] for update in streamed]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert (question, status) == ("", "")
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert turns == [Turn("What color?", chat[1]["content"])]
    assert table["headers"] == translations("en")["candidate_columns"]
    chosen_rows = [row for row in table["data"] if row[0]]
    assert chosen_rows[0][1].strip() == turns[0][1] or turns[0][1] == "unknown"
    fused = [float(row[4]) for row in table["data"]]
    assert fused == sorted(fused, reverse=True)
    assert all(re.fullmatch(r"(< 0\.1|\d{1,2}\.\d|100\.0) %", row[2]) for row in table["data"])


def test_questions_about_an_image_are_turns_of_one_conversation(page: Page, image: str) -> None:
    first = list(page.ask(image, "What color?", [], "English"))[-1]
    second = list(page.ask(image, "有几个圆形？", first[1], "English"))[-1]
    assert [message["role"] for message in second[0]] == ["user", "assistant"] * 2
    assert len(second[1]) == 2
    request = _request(Path(image), [Turn("a?", "b"), Turn("c?", "d", "caption")], "两个？", "vqa")
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("user", "<image>\na?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "两个？"),
    ]  # fmt: skip
    assert (request.language, len(request.images), request.earlier_tasks) == ("zh", 1, ("vqa", "caption"))


def test_an_image_is_described(page: Page, image: str) -> None:
    chat, turns, table, _, status = list(page.caption(image, [], "中文"))[-1]
    assert chat[0]["content"] == translations("zh")["caption_question"]
    assert (len(turns), table, status) == (1, {"headers": translations("zh")["candidate_columns"], "data": []}, "")


def test_two_systems_answer_side_by_side(page: Page, image: str) -> None:
    ours, theirs, *tables, status = page.compare(image, "What color?", "English")
    sessions = (page.backends.session, page.backends.other)
    expected_replies = [session.ask(Path(image), [], "What color?") for session in sessions if isinstance(session, Session)]
    assert [ours, theirs] == [reply.chosen for reply in expected_replies]
    assert [[row[1] for row in table["data"]] for table in tables] == [
        [row.text for row in candidate_rows(reply)] for reply in expected_replies
    ]
    assert tables[0] != tables[1], "two systems answer, not one twice"
    assert status == ""


def test_the_fitted_confidence_is_shown(page: Page, image: str) -> None:
    session = page.backends.session
    assert isinstance(session, Session) and session.reranker is not None
    plan = replace(session.reranker.plan, confidence=Confidence(LogisticModel(("agreement",), (0.0,), math.log(3))))
    session_with_confidence = Session("ours", session.answerer, replace(session.reranker, plan=plan), session.decoding, 6)
    for language, sentence in (("English", "Probability that the answer is right: 75%"), ("中文", "答案正确的可能性：75%")):
        confident_page = Page(replace(page.backends, session=session_with_confidence), page.uploads)
        assert list(confident_page.ask(image, "What?", [], language))[-1][-1] == sentence
        assert confident_page.compare(image, "What?", language)[-1] == f"ours: {sentence}"


def test_long_file_names_are_shortened_to_their_end() -> None:
    assert [shorten(name) for name in ("0.png", "3f786850e387", "000400000001.jpg")] == ["0.png", "3f786850e387", "…000001.jpg"]


def test_probabilities_are_shown_with_one_decimal() -> None:
    assert [percent(value) for value in (None, 0.0, 0.0004, 0.0126, 1.0)] == ["–", "< 0.1 %", "< 0.1 %", "1.3 %", "100.0 %"]


def test_images_are_found_by_text_and_by_image(page: Page, image: str) -> None:
    results, status = page.search_by_text("一个红色的圆形", "English")
    assert (len(results), status) == (4, "")
    results, _ = page.search_by_image(image, "English")
    assert results[0][1] == "1.000  0.png"


def test_a_missing_file_is_reported_and_the_other_results_are_shown(page: Page, demo_backends: DemoBackends, tmp_path: Path) -> None:
    index = demo_backends.index
    assert isinstance(index, ImageIndex)
    first, *others = index.search_by_text("a", 100)
    assert first.path is not None
    moved = first.path.rename(tmp_path / "away.png")
    try:
        for language in LANGUAGES:
            results, status = page.search_by_text("a", language)
            assert len(results) == len(others)
            assert status == f"⚠️ {translations(LANGUAGES[language])['missing_images'].format(number=1, names=first.path.name)}"
    finally:
        moved.rename(first.path)


def test_labels_get_probabilities(page: Page, image: str) -> None:
    probabilities, status = page.classify(image, "cat， dog,鸟", "English")
    assert set(probabilities) == {"cat", "dog", "鸟"}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert status == ""


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_a_missing_input_or_model_is_a_message(page: Page, image: str, language: str, tmp_path: Path) -> None:
    page_text = translations(LANGUAGES[language])
    text_file = page.uploads.path / "notes.png"
    text_file.write_text("not an image")
    empty_page = Page(DemoBackends("there is no checkpoint", None, None, "there is no index", []), page.uploads)
    messages = {
        "no_image": list(page.ask(None, "a?", [], language))[-1][-1],
        "no_question": list(page.ask(image, " ", [], language))[-1][-1],
        "not_uploaded": list(page.ask(str(tmp_path / "none.png"), "a?", [], language))[-1][-1],
        "invalid_image": list(page.caption(str(text_file), [], language))[-1][-1],
        "no_model": list(empty_page.ask(image, "a?", [], language))[-1][-1],
        "search_unavailable": empty_page.search_by_text("a", language)[-1],
        "no_search_text": page.search_by_text(" ", language)[-1],
        "no_clip": empty_page.classify(image, "a", language)[-1],
        "no_labels": page.classify(image, ",", language)[-1],
        "no_second_system": Page(replace(page.backends, other=None), page.uploads).compare(image, "a?", language)[-1],
    }
    for key, message in messages.items():
        beginning = page_text[key].partition("{")[0]
        assert message.startswith(f"⚠️ {beginning}"), key
        assert "Traceback" not in message
        assert "{" not in message


def test_every_text_changes_with_the_language(page: Page) -> None:
    page.build()
    updates = page._translate("中文")
    assert len(updates) == len(page.translated) > 20
    assert all(
        any(value == text for text in translations("zh").values())
        for update in updates
        for name, value in update.items()
        if name != "__type__"
    )
    component, _ = page.translated[0]
    assert component.value == translations("en")["title"]
