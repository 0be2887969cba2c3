"""Unicode ranges of Chinese characters."""

import re

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""Character ranges for use inside the brackets of a regular expression."""
HAS_CJK = re.compile(f"[{CJK}]")
