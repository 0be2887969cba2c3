"""A question and an answer as one text for a picture-text scorer."""

from dataset.sample import IMAGE_MARK, Language


def statement(question: str, answer: str, language: Language) -> str:
    """The question and the answer behind it, joined as the language does. Picture marks and line breaks go."""
    parts = [" ".join(text.replace(IMAGE_MARK, " ").split()) for text in (question, answer)]
    return ("" if language == "zh" else " ").join(parts).strip()
