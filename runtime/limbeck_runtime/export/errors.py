"""What can go wrong while a model is exported.

ExportError          the format cannot hold this model; a ValueError, so that the driver ends with "InvalidSpec"
VerificationError    the file was written, and does not answer as the torch model does
"""

from __future__ import annotations


class ExportError(ValueError):
    """A model that a format cannot hold."""


class VerificationError(RuntimeError):
    """An exported file that answers differently; the message holds the figures."""
