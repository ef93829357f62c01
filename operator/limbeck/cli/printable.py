"""Text that may be shown on a terminal. Imports nothing heavy."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text from data without control characters, which could move the cursor or ring the bell."""
    return "".join("?" if unicodedata.category(character) in ("Cc", "Cs") else character for character in text)
