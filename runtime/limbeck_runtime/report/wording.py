"""Figures in words, the same in terminal, page and model card: 12.1 MB, 3.9x, 41 ms, 1.2 M.

A figure that is None is shown as a dash; whoever shows it says why.
"""

from __future__ import annotations

import math

from limbeck.api.report import Report

MISSING = "-"
_COUNT_UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_BYTE_UNITS = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
_TIME_UNITS = ((1.0, " s"), (1e-3, " ms"), (1e-6, " us"))


def in_count(count: float | None) -> str:
    """1234567 as `1.23 M`."""
    return MISSING if count is None else _scaled(count, _COUNT_UNITS, "")


def in_bytes(num_bytes: float | None) -> str:
    """12100000 as `12.1 MB`, decimal as disks count."""
    return MISSING if num_bytes is None else _scaled(num_bytes, _BYTE_UNITS, " B")


def in_seconds(seconds: float | None) -> str:
    """0.0123 as `12.3 ms`."""
    if seconds is None:
        return MISSING
    for size, unit in _TIME_UNITS:
        if seconds >= size:
            return _significant(seconds / size) + unit
    return _significant(seconds / 1e-6) + " us"


def in_times(ratio: float | None) -> str:
    """3.9 as `3.90x`, and 1 as `1x`."""
    if ratio is None:
        return MISSING
    return "1x" if ratio == 1 else _significant(ratio) + "x"


def in_percent(percent: float | None) -> str:
    """98.24 as `98.2 %`."""
    return MISSING if percent is None else f"{percent:.1f} %"


def in_number(value: float | None) -> str:
    """A metric: three decimals, or three significant digits where that would be nothing."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def in_duration(seconds: float) -> str:
    """How long something took: `41.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def in_words(name: str) -> str:
    """The name of a metric as people say it: `image_to_text_recall@10` as `image to text recall@10`."""
    return name.replace("_", " ")


def unlike(reached: float, wanted: float, unit: str) -> str:
    """`reached` with as many digits as it takes not to read like `wanted`, which it missed or passed."""
    for digits in range(1, 6):
        text = f"{reached:.{digits}f}"
        if float(text) != wanted or reached == wanted:
            return text + unit
    return f"{reached!r}{unit}"


def shown_batch_size(report: Report) -> int | None:
    """The batch size that a single latency figure is given for: the smallest that the result was timed at."""
    return min((entry.batch_size for entry in report.final.latency), default=None)


def _scaled(value: float, units: tuple[tuple[float, str], ...], plain: str) -> str:
    for size, unit in units:
        # 999.6 k would be shown as 1000 k.
        if value >= size * 0.9995:
            return _significant(value / size) + unit
    return f"{value:g}{plain}"


def _significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # so that 0.9998 has the digits of 1
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
