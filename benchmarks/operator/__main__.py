"""Measure the operator: `make bench-operator`, or `make bench-operator ROWS=O1`.

Beside the rows' targets: LIMBECK_BENCH_JOBS, _FINISHED, _ACTIVE and _CHANGES make each measurement smaller or larger.
"""

from __future__ import annotations

import sys

from benchmarks.__main__ import main
from benchmarks.operator.rows import ROWS
from benchmarks.runner import ROOT

if __name__ == "__main__":
    sys.exit(main(["--output", str(ROOT / "build" / "bench-operator.json"), *sys.argv[1:]], ROWS))
