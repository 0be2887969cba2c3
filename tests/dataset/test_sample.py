"""How a turn is put together: parts on lines of their own, and the sentence that says how an answer is wanted."""

import pytest

from dataset.sample import Message, Sample, add_prompt, detect_language, join_parts


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        (["<image>", "What?"], "<image>\nWhat?"),
        (["What?", "<image>"], "What?\n<image>"),
        (["<image>", "<image>", "Which?"], "<image>\n<image>\nWhich?"),
        (["In ", "<image>", " and ", "<image>", " what?"], "In\n<image>\nand\n<image>\nwhat?"),
        (["<image>", "First.", "Then?"], "<image>\nFirst.\nThen?"),
        (["<image>", "\nWhat?\n"], "<image>\nWhat?"),
        (["<image>", "", " \n", "什么？"], "<image>\n什么？"),
        ([" One\n\nTwo "], "One\n\nTwo"),
        ([], ""),
    ],
)
def test_each_part_begins_on_a_new_line(parts: list[str], content: str) -> None:
    assert join_parts(parts) == content


@pytest.mark.parametrize(
    ("content", "prompted"),
    [
        ("<image>\nWhat?", "<image>\nWhat?\nP."),
        ("What?\n<image>", "What?\nP.\n<image>"),
        ("Which?\n<image>\n<image>", "Which?\nP.\n<image>\n<image>"),
        ("Is <image> like <image>?", "Is <image> like <image>?\nP."),
        ("What?\n", "What?\nP."),
        ("What?\nP.", "What?\nP."),
        ("What?\nP.\n<image>", "What?\nP.\n<image>"),
        ("<image>", "<image>"),
        ("<image>\n<image>\n", "<image>\n<image>\n"),
    ],
)
def test_a_prompt_follows_the_question_on_a_line_of_its_own(content: str, prompted: str) -> None:
    assert add_prompt(content, "P.") == prompted


def test_a_sample_keeps_its_questions_and_is_trained_with_the_prompt_after_each() -> None:
    turns = (Message("system", "S"), Message("user", "A?"), Message("assistant", "a"), Message("user", "B?"))
    sample = Sample("s", (), "vqa", "vqa", "en", "train", turns, ("b",), prompt="P.")
    assert [turn.content for turn in sample.prompted_messages] == ["S", "A?\nP.", "a", "B?\nP."]
    assert sample.messages == turns
    assert Sample("s", (), "vqa", "vqa", "en", "train", turns, ("b",)).prompted_messages == turns


@pytest.mark.parametrize(("text", "language"), [("What?", "en"), ("什么", "zh"), ("Is 猫 a cat?", "zh"), ("豈", "zh"), ("", "en")])
def test_a_text_with_a_chinese_character_is_chinese(text: str, language: str) -> None:
    assert detect_language("ok", text) == language
