"""A table of made-up rows, each with a module in fake_rows/."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.rows import Row, at_least, at_most

TARGETS = (at_least("ratio", "peer / ours", 2), at_most("bytes", "size", 20, "B"))


def fake_row(module: str) -> Row:
    return Row(f"a row that {module.replace('_', ' ')}", "a peer", TARGETS, module)


@pytest.fixture
def environment() -> dict[str, str]:
    """In which the processes of rows find the made-up modules."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).with_name("fake_rows"))}


@pytest.fixture
def row() -> Callable[..., Row]:
    """`row("meets")`: the row whose module is fake_rows/meets.py; keywords change it."""
    return lambda module, **changes: replace(fake_row(module), **changes)


@pytest.fixture
def rows() -> dict[str, Row]:
    """One that meets, one that misses, one that crashes."""
    return {"F1": fake_row("meets"), "F2": fake_row("misses"), "F3": fake_row("crashes")}
