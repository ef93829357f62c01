"""Rows in the form in which they are stored, between a codec and a file; and the numbers' types on the way."""

from __future__ import annotations

import warnings
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


# NumPy converts half floats one by one; torch has the processor do it, ten times faster.


def narrowed(values: Array) -> Array:
    """As float16."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the array may be read-only; it is only read
        half: Array = torch.from_numpy(values).half().numpy()
    return half


def widened(values: Array) -> Array:
    """As float32."""
    if values.dtype != np.float16:
        return values.astype(np.float32, copy=False)
    import torch

    single: Array = torch.from_numpy(values).float().numpy()
    return single
