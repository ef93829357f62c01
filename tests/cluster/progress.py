"""One line for each thing that takes time, with its seconds; on standard error, so that output stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says `what` at once, so that one knows what is being waited for, and the seconds when it is over."""
    start = time.monotonic()
    print(f"{what} ...", end="", flush=True, file=sys.stderr)
    try:
        yield
    except BaseException:
        print(f" failed after {time.monotonic() - start:.1f} s", flush=True, file=sys.stderr)
        raise
    print(f" {time.monotonic() - start:.1f} s", flush=True, file=sys.stderr)
