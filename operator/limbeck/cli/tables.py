"""Tables and short durations, as kubectl's users know them: `5m40s`, columns three spaces apart."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.cli.printable import printable

_GAP = "   "


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns. Cells are freed of what could steer a terminal; an empty one is shown as `-`."""
    cells = [list(head), *([printable(" ".join(cell.split())) or "-" for cell in row] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def indented(lines: Sequence[str], spaces: int = 2) -> list[str]:
    """The lines, moved to the right."""
    return [" " * spaces + line if line else line for line in lines]


def short(seconds: float) -> str:
    """`45s`, `5m40s`, `3h05m`, `4d`: never more than two units."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest:02d}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"
