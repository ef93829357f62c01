"""What can be wrong with factorising."""

from __future__ import annotations


class LowRankError(ValueError):
    """Something about the model or the settings that keeps it from being factorised; the message names what."""
