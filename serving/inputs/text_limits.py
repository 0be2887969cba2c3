"""Text that clients send, within limits."""

from serving.http.error_responses import ServiceError


def check_well_formed(text: str) -> str:
    """The text. Raises ValueError where it has half of a character: JSON can say one, and no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is one half of a surrogate pair") from error
    return text


def clean_text(text: str, name: str, max_chars: int) -> str:
    """The text without blanks around it. Raises ServiceError 422 when it is empty, longer than `longest` characters or not whole."""
    text = text.strip()
    if not text or len(text) > max_chars:
        raise ServiceError(422, f"{name}: expected 1 to {max_chars} characters, found {len(text)}", "text_length")
    try:
        return check_well_formed(text)
    except ValueError as error:
        raise ServiceError(422, f"{name}: {error}", "text") from error
