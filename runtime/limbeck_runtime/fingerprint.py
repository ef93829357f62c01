"""Fingerprints: equal inputs, settings and code give equal text, so that finished work is found again."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

# Raised by whoever changes what a stage computes from the same inputs; older results are then computed anew.
STAGE_VERSION: Final = 1


def fingerprint(*parts: Any) -> str:
    """Hex sha256 over JSON-ready parts, keys sorted."""
    text = json.dumps([STAGE_VERSION, *parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
