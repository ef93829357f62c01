"""What can be wrong with pruning."""

from __future__ import annotations


class PruningError(ValueError):
    """Something about the model or the settings that keeps it from being pruned; the message names what."""
