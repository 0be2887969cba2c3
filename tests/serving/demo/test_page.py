"""The actions of the page's buttons, and its messages if an action is impossible."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from serving.demo.localization import LANGUAGES, candidate_cells, percent, shorten, translations
from serving.demo.page import Page
from serving.demo.page_actions import DemoBackends, PageActions
from serving.demo.session import Conversation, Session, Turn, _request
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


def test_an_answer_is_streamed_and_then_shown_with_its_candidates(page: PageActions, image: str) -> None:
    conversation = Conversation()
    *streamed, (chat, table, question, status) = page.ask(image, "What color?", conversation, "English")
    assert streamed
    texts = [update[0][-1]["content"] for update in streamed]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert (question, status) == ("", "")
    assert [message["role"] for message in chat] == ["user", "assistant"]
    (turn,) = conversation.turns
    assert turn.question == "What color?"
    assert chat[1]["content"].startswith(turn.answer)
    assert table["headers"] == translations("en")["candidate_columns"]
    chosen_rows = [row for row in table["data"] if row[0]]
    assert chosen_rows[0][1].strip() == turn.answer or turn.answer == "unknown"
    fused = [float(row[4]) for row in table["data"]]
    assert fused == sorted(fused, reverse=True)
    assert all(re.fullmatch(r"(< 0\.1|\d{1,2}\.\d|100\.0) %", row[2]) for row in table["data"])


def test_questions_about_an_image_are_turns_of_one_conversation(page: PageActions, image: str) -> None:
    conversation = Conversation()
    for question in ("What color?", "有几个圆形？"):
        chat = list(page.ask(image, question, conversation, "English"))[-1][0]
    assert [message["role"] for message in chat] == ["user", "assistant"] * 2
    assert len(conversation.turns) == 2
    request = _request(Path(image), [Turn("a?", "b"), Turn("c?", "d", "caption")], "两个？", "vqa")
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("user", "<image>\na?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "两个？"),
    ]  # fmt: skip
    assert (request.language, len(request.images), request.earlier_tasks) == ("zh", 1, ("vqa", "caption"))


def test_an_image_is_described(page: PageActions, image: str) -> None:
    conversation = Conversation()
    chat, table, _, status = list(page.caption(image, conversation, "中文"))[-1]
    assert chat[0]["content"] == translations("zh")["caption_question"]
    assert (len(conversation.turns), table, status) == (1, {"headers": translations("zh")["candidate_columns"], "data": []}, "")


@pytest.mark.parametrize("action", ["ask", "caption"])
def test_an_answer_to_a_conversation_that_is_over_is_not_shown(page: PageActions, image: str, action: str) -> None:
    conversation = Conversation()
    updates = page.ask(image, "What?", conversation, "English") if action == "ask" else page.caption(image, conversation, "English")
    assert next(updates)[0][-1]["content"]
    chat, table, status = page.new_conversation(image, conversation, "English")
    assert (chat, conversation.turns, table["data"], status) == ([], [], [], "")
    assert list(updates) == []


def test_another_image_begins_another_conversation(page: PageActions, image: str) -> None:
    conversation = Conversation()
    list(page.ask(image, "What?", conversation, "English"))
    # The question may come before the notice that the image is another one, which must not take its answer away.
    assert page.change_image(image, conversation, "English")[0] != []
    assert len(conversation.turns) == 1
    assert page.change_image("other.png", conversation, "English")[0] == []
    assert conversation.turns == []
    list(page.ask(image, "What?", conversation, "English"))
    list(page.ask(image, "What?", conversation, "English"))
    assert len(conversation.turns) == 2


def test_the_conversation_is_shown_in_the_other_language(page: PageActions, image: str) -> None:
    conversation = Conversation()
    *_, (chat, table, _, _) = page.ask(image, "What color?", conversation, "English")
    chinese_chat, chinese_table = page.show(conversation, "中文")
    assert [message["role"] for message in chinese_chat] == [message["role"] for message in chat]
    assert chinese_table == {"headers": translations("zh")["candidate_columns"], "data": table["data"]}


def test_an_answer_that_was_cut_says_so(page: PageActions, image: str) -> None:
    session = page.backends.session
    assert isinstance(session, Session)
    for max_new_tokens, language in ((1, "English"), (1, "中文"), (500, "English")):
        # The untrained model goes on for ever; a stop text that every answer has soon ends it.
        stop = () if max_new_tokens == 1 else ("e", "a", "\n", " ")
        decoding = replace(session.decoding, strategy="greedy", max_new_tokens=max_new_tokens, stop=stop)
        short = PageActions(replace(page.backends, session=Session("ours", session.answerer, None, decoding, max_new_tokens)), page.uploads)
        note = translations(LANGUAGES[language])["cut"]
        for chat in (
            list(short.ask(image, "What?", Conversation(), language))[-1][0],
            list(short.caption(image, Conversation(), language))[-1][0],
        ):
            assert (note in chat[-1]["content"]) is (max_new_tokens == 1)
        assert (note in short.compare(image, "What?", language)[2]) is (max_new_tokens == 1)


def test_two_systems_answer_side_by_side(page: PageActions, image: str) -> None:
    ours, theirs, _, _, *tables, status = page.compare(image, "What color?", "English")
    sessions = (page.backends.session, page.backends.other)
    expected_replies = [session.ask(Path(image), [], "What color?") for session in sessions if isinstance(session, Session)]
    assert [ours, theirs] == [reply.chosen for reply in expected_replies]
    assert [table["data"] for table in tables] == [candidate_cells(reply) for reply in expected_replies]
    assert tables[0] != tables[1], "two systems answer, not one twice"
    assert status == ""


def test_the_fitted_confidence_is_shown(page: PageActions, image: str) -> None:
    session = page.backends.session
    assert isinstance(session, Session) and session.reranker is not None
    plan = replace(session.reranker.plan, confidence=Confidence(LogisticModel(("agreement",), (0.0,), math.log(3))))
    session_with_confidence = Session("ours", session.answerer, replace(session.reranker, plan=plan), session.decoding, 6)
    for language, sentence in (("English", "Probability that the answer is right: 75%"), ("中文", "答案正确的可能性：75%")):
        confident_page = PageActions(replace(page.backends, session=session_with_confidence), page.uploads)
        *_, (chat, _, _, status) = confident_page.ask(image, "What?", Conversation(), language)
        assert sentence in chat[-1]["content"]
        compared = confident_page.compare(image, "What?", language)
        assert sentence in compared[2]
        assert sentence not in compared[3], "the other system has no confidence"
        assert status == compared[-1] == ""


def test_long_file_names_are_shortened_to_their_end() -> None:
    assert [shorten(name) for name in ("0.png", "COCO_val2014_000000581929.jpg", 40 * "a" + ".jpg")] == [
        "0.png",
        "COCO_val2014_000000581929.jpg",
        "…" + 26 * "a" + ".jpg",
    ]


def test_probabilities_are_shown_with_one_decimal() -> None:
    assert [percent(value) for value in (None, 0.0, 0.0004, 0.0126, 1.0)] == ["–", "< 0.1 %", "< 0.1 %", "1.3 %", "100.0 %"]


def test_images_are_found_by_text_and_by_image(page: PageActions, image: str) -> None:
    results, status = page.search_by_text("一个红色的圆形", "English")
    assert (len(results), status) == (4, "")
    results, _ = page.search_by_image(image, "English")
    assert results[0][1] == "1.000 · 0.png"


def test_a_missing_file_is_reported_and_the_other_results_are_shown(page: PageActions, demo_backends: DemoBackends, tmp_path: Path) -> None:
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


def test_labels_get_probabilities(page: PageActions, image: str) -> None:
    probabilities, status = page.classify(image, "cat， dog,鸟", "English")
    assert set(probabilities) == {"cat", "dog", "鸟"}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert status == ""


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_a_missing_input_or_model_is_a_message(page: PageActions, image: str, language: str, tmp_path: Path) -> None:
    page_text = translations(LANGUAGES[language])
    text_file = page.uploads.path / "notes.png"
    text_file.write_text("not an image")
    empty_page = PageActions(DemoBackends("there is no checkpoint", None, None, "there is no index", []), page.uploads)
    messages = {
        "no_image": list(page.ask(None, "a?", Conversation(), language))[-1][-1],
        "no_question": list(page.ask(image, " ", Conversation(), language))[-1][-1],
        "not_uploaded": list(page.ask(str(tmp_path / "none.png"), "a?", Conversation(), language))[-1][-1],
        "invalid_image": list(page.caption(str(text_file), Conversation(), language))[-1][-1],
        "no_model": list(empty_page.ask(image, "a?", Conversation(), language))[-1][-1],
        "search_unavailable": empty_page.search_by_text("a", language)[-1],
        "no_search_text": page.search_by_text(" ", language)[-1],
        "no_clip": empty_page.classify(image, "a", language)[-1],
        "no_labels": page.classify(image, ",", language)[-1],
        "no_second_system": PageActions(replace(page.backends, other=None), page.uploads).compare(image, "a?", language)[-1],
    }
    for key, message in messages.items():
        beginning = page_text[key].partition("{")[0]
        assert message.startswith(f"⚠️ {beginning}"), key
        assert "Traceback" not in message
        assert "{" not in message


def test_every_text_changes_with_the_language(page: PageActions) -> None:
    components = Page(page)
    components.build()
    updates = components._translate("中文")
    assert len(updates) == len(components.translated) > 20
    assert all(
        any(value == text for text in translations("zh").values())
        for update in updates
        for name, value in update.items()
        if name != "__type__"
    )
    component, _ = components.translated[0]
    assert component.value == translations("en")["title"]
