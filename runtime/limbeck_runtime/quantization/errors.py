"""What can be wrong with a wish to quantize. A ValueError, so that the driver ends with "InvalidSpec"."""

from __future__ import annotations


class QuantizationError(ValueError):
    """A scheme, a pattern or a model that cannot be quantized as asked."""
