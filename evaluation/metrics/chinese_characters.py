"""Which characters are Chinese ones."""

import re

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Ranges of Chinese characters, for use inside a regular expression's brackets."""
HAS_CJK = re.compile(f"[{CJK}]")
