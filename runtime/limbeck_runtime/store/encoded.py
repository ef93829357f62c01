"""Rows in the form in which they are stored, between a codec and a file; and the numbers' types on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Encoded:
    """Rows as columns. `columns` have R rows; `slots`, if any, have sum(slot_counts) rows, in the order of the rows."""

    columns: Mapping[str, Array]
    slots: Array | None = None
    slot_counts: Array | None = None


# NumPy converts half floats one by one; torch has the processor do it, ten times faster. But torch wakes all threads
# for more than 32,767 numbers, and 5 us become milliseconds where they wait for a core. So it gets less at a time.
_PIECE = 30_720


def narrowed(values: Array) -> Array:
    """As float16."""
    return _converted(values, np.float16)


def widened(values: Array) -> Array:
    """As float32."""
    return _converted(values, np.float32) if values.dtype == np.float16 else values.astype(np.float32, copy=False)


def _converted(values: Array, dtype: type[np.floating]) -> Array:
    from torch import from_numpy

    flat = np.ascontiguousarray(values).reshape(-1)
    if not flat.flags.writeable:
        flat = flat.copy()  # torch warns of arrays that it must not write to
    converted = np.empty(flat.shape, dtype)
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        from_numpy(converted[piece]).copy_(from_numpy(flat[piece]))
    return converted.reshape(values.shape)
