"""One row in a process of its own: imports the row's module, measures, leaves the result as JSON.

    python -m benchmarks.row_process benchmarks.store_reading result.json

The module's own output goes where the process's goes; only the file counts.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(module: str, result: str) -> None:
    """Measure `module` and write what it gives to the file `result`."""
    measured = importlib.import_module(module).measure()
    Path(result).write_text(json.dumps(measured, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
