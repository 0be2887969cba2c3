"""Decide whether two candidates are the same answer: a light normalisation, separate from that of the evaluation metrics."""

import unicodedata

_OPENING = "\"'“‘「『([{（【《〈"
_CLOSING = "\"'”’」』)]}）】》〉"
_SENTENCE_ENDS = ".,;:!?…。，、；：！？"


def candidate_key(text: str) -> str:
    """A key that is equal for texts that differ only in case, full-width forms, whitespace or surrounding punctuation.

    Marks with a meaning (`-5`, `$5`, `.5`, `5%`, `C++`) are kept; a text that is only punctuation keeps it.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded.lstrip(_OPENING).rstrip(_CLOSING + _SENTENCE_ENDS).strip()
    return bare or folded
