"""A row whose figure is no number."""

from typing import Any


def measure() -> dict[str, Any]:
    return {"ratio": float("nan"), "bytes": 10}
