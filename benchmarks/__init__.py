"""Measurements against named peers: `make bench`, or `make bench ROWS="P5 P6"`. Not tests, and no test times anything.

Reading order: rows.py (what is measured, and what counts as met), one module for each row, timing.py (how times are
compared), row_process.py and runner.py (a process for each row), screen.py (what is shown).

A row's module has `measure() -> dict`. What the table in rows.py wants of it stands there under the table's names: a
number, or {"value", "spread": [lowest, highest], "runs"}. Everything else in the dict goes into the JSON as it is.
"""
