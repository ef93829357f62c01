"""Exit codes of the command line."""

from __future__ import annotations

from typing import Final

OK: Final = 0
JOB_FAILED: Final = 1
USAGE: Final = 2
