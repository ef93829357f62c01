"""A row that meets its targets, and tells where it ran."""

import os
from typing import Any


def measure() -> dict[str, Any]:
    print("what a row prints goes nowhere that matters")
    return {
        "ratio": {"value": 2.0, "spread": [1.5, 2.5], "runs": 5},
        "bytes": 10,
        "process": os.getpid(),
        "threads": os.environ["OMP_NUM_THREADS"],
    }
