"""Exit codes of the command line."""

from __future__ import annotations

from typing import Final

from limbeck import names

OK: Final = 0
JOB_FAILED: Final = 1
USAGE: Final = 2  # a bad file, an unknown name, or the API server refused
UNREACHABLE: Final = 3  # no cluster, no answer, or our credentials are refused
TIMED_OUT: Final = 4
INTERRUPTED: Final = names.EXIT_INTERRUPTED
