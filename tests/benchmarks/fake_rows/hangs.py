"""A row that never ends."""

import threading
from typing import Any


def measure() -> dict[str, Any]:
    threading.Event().wait()
    return {}
