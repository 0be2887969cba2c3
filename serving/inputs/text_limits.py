"""Checks of texts that clients send."""

from serving.http.error_responses import ServiceError


def check_well_formed(text: str) -> str:
    """The text. Raises ValueError if it has a lone surrogate: JSON can encode one, but no tokenizer accepts it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is a lone surrogate") from error
    return text


def clean_text(text: str, name: str, max_chars: int) -> str:
    """The stripped text. Raises ServiceError 422 if it is empty, longer than `max_chars` or has a lone surrogate. name: its field."""
    text = text.strip()
    if not text or len(text) > max_chars:
        raise ServiceError(422, f"{name}: expected 1 to {max_chars} characters, found {len(text)}", "text_length")
    try:
        return check_well_formed(text)
    except ValueError as error:
        raise ServiceError(422, f"{name}: {error}", "text") from error
