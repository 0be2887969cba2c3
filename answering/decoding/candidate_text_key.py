"""When two candidates say the same: a light normalisation, apart from the scoring normalisation of the evaluation."""

import unicodedata

_OPENING = "\"'“‘「『([{（【《〈"
_CLOSING = "\"'”’」』)]}）】》〉"
_SENTENCE_ENDS = ".,;:!?…。，、；：！？"


def merging_key(text: str) -> str:
    """Texts with equal keys are one candidate: case, full-width forms, spaces and punctuation around them aside.

    Marks that carry meaning (`-5`, `$5`, `.5`, `5%`, `C++`) stay; a text of punctuation alone keeps it.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded.lstrip(_OPENING).rstrip(_CLOSING + _SENTENCE_ENDS).strip()
    return bare or folded
