"""Names of pre-trained parts: a local folder or a hub name."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

PartName = Annotated[str, Field(min_length=1)]
"""A folder in the Hugging Face format, or a hub name such as `google/siglip-so400m-patch14-384`."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_missing_folder(name: str) -> bool:
    """True when `name` can only mean a local folder and that folder does not exist."""
    return not Path(name).is_dir() and _HUB_NAME.fullmatch(name) is None
