"""A row whose peer is not installed."""

from typing import Any

import a_peer_that_is_not_installed  # type: ignore[import-not-found]  # noqa: F401


def measure() -> dict[str, Any]:
    return {"ratio": 2.0, "bytes": 10}
