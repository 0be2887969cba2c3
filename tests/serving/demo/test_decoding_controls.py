"""The decoding panel of the page: its values change the next answers, and an impossible one is a message."""

import dataclasses
import math
from typing import Any

import pytest

from answering.config import DecodingConfig, OpenAiSystem
from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from errors import UsageError
from serving.demo.decoding_controls import NAMES, changed_settings
from serving.demo.localization import PageError
from serving.demo.page_actions import DemoBackends, PageActions
from serving.demo.session import Conversation, Session
from serving.demo.upload_folder import UploadFolder

CONFIGURED = DecodingConfig(num_candidates=3, strategy="beam", max_new_tokens=8)


def values(configured: DecodingConfig = CONFIGURED, **changes: Any) -> list[Any]:
    """Values of the components in their order: the configured ones with changes, as gradio passes them on."""
    shown = {name: getattr(configured, name) for name in NAMES} | {"stop": "\n".join(configured.stop)} | changes
    return [shown[name] for name in NAMES]


def test_the_panel_has_every_setting_that_changes_an_answer_but_its_size() -> None:
    speed = {"batch_size", "cuda_graphs"}
    assert {field.name for field in dataclasses.fields(DecodingConfig)} - speed - {"num_candidates", "max_new_tokens"} == set(NAMES)  # type: ignore[arg-type]


def test_values_that_nobody_touched_change_nothing() -> None:
    assert changed_settings(values(), CONFIGURED) == {}
    assert changed_settings((), CONFIGURED) == {}
    with_stop = dataclasses.replace(CONFIGURED, stop=(".", "END"), no_repeat_ngram_size=2)
    assert changed_settings(values(with_stop), with_stop) == {}


def test_changed_values_are_settings_of_their_type() -> None:
    changes = changed_settings(values(temperature=2, top_k=5, length_penalty=0, stop=".\n\nEND", strategy="sample"), CONFIGURED)
    assert changes == {"strategy": "sample", "temperature": 2.0, "top_k": 5, "length_penalty": 0.0, "stop": (".", "END")}
    assert dataclasses.replace(CONFIGURED, **changes).stop == (".", "END")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"top_p": 1.5}, "top_p: expected at most 1.0, found 1.5"),
        ({"temperature": 0}, "temperature: expected a number above 0.0, found 0.0"),
        ({"seed": None}, "seed: expected a whole number, found null"),
        ({"stop": "a\nb\nc\nd\ne"}, "stop: expected at most 4 entries, found 5"),
    ],
)
def test_an_impossible_value_is_a_message(page: PageActions, image: str, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(PageError) as raised:
        changed_settings(values(**change), CONFIGURED)
    assert raised.value.values == {"reason": reason}
    session = page.backends.session
    assert isinstance(session, Session)
    given = values(session.decoding, **change)
    shown = [
        list(page.ask(image, "What?", Conversation(), "English", *given))[-1][-1],
        list(page.caption(image, Conversation(), "English", *given))[-1][-1],
        page.compare(image, "What?", "English", *given)[-1],
    ]
    assert shown == [f"⚠️ This decoding setting is not possible: {reason}"] * 3


def test_the_values_change_answers_and_their_confidence_is_not_shown(page: PageActions, image: str, uploads: UploadFolder) -> None:
    session = page.backends.session
    assert isinstance(session, Session) and session.reranker is not None
    confidence = Confidence(LogisticModel(("agreement",), (0.0,), math.log(3)))
    plan = dataclasses.replace(session.reranker.plan, confidence=confidence)
    confident = Session("ours", session.answerer, dataclasses.replace(session.reranker, plan=plan), session.decoding, 6)
    own_page = PageActions(dataclasses.replace(page.backends, session=confident), uploads)
    asked, changed = Conversation(), Conversation()
    *_, (chat, *_) = own_page.ask(image, "What?", asked, "English", *values(session.decoding))
    assert "Probability" in chat[-1]["content"]
    stop = asked.turns[0].answer[1:3]
    given = values(session.decoding, strategy="greedy", stop=stop)
    *_, (chat, table, _, status) = own_page.ask(image, "What?", changed, "English", *given)
    assert "Probability" not in chat[-1]["content"]
    assert status == ""
    assert len(table["data"]) == 1, "greedy decoding gives one candidate"
    assert stop not in changed.turns[0].answer
    described = {}
    for name, change in (("one token", {"top_k": 1}), ("greedy", {"strategy": "greedy"})):
        conversation = Conversation()
        list(own_page.caption(image, conversation, "English", *values(session.decoding, **change)))
        described[name] = conversation.turns[0].answer
    assert described["one token"] == described["greedy"]


def test_a_setting_that_the_system_does_not_have_is_a_message(demo_backends: DemoBackends, image: str, uploads: UploadFolder) -> None:
    session = demo_backends.session
    assert isinstance(session, Session)
    far = Session("far", session.answerer, None, session.decoding, 6, OpenAiSystem(name="far", kind="openai", model="m"))
    page = PageActions(dataclasses.replace(demo_backends, session=far), uploads)
    message = list(page.ask(image, "What?", Conversation(), "English", *values(session.decoding, top_k=5)))[-1][-1]
    assert "system far is asked through OpenAI's API, which has no such setting" in message
    with pytest.raises(UsageError):
        far._changed(session.decoding, {"repetition_penalty": 2.0})
