"""A row that raises, after it has said something."""

from typing import Any


def measure() -> dict[str, Any]:
    print("so far so good")
    raise RuntimeError("the peer said no")
