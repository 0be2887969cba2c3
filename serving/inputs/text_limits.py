"""Text that clients send, within limits."""

from serving.http.error_responses import ServiceError


def whole(text: str) -> str:
    """The text. Raises ValueError where it has half of a character: JSON can say one, and no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is one half of a surrogate pair") from error
    return text


def checked(text: str, name: str, longest: int) -> str:
    """The text without blanks around it. Raises ServiceError 422 when it is empty, longer than `longest` characters or not whole."""
    text = text.strip()
    if not text or len(text) > longest:
        raise ServiceError(422, f"{name}: expected 1 to {longest} characters, found {len(text)}", "text_length")
    try:
        return whole(text)
    except ValueError as error:
        raise ServiceError(422, f"{name}: {error}", "text") from error
