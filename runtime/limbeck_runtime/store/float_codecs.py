"""Vectors and arrays of numbers; see codec.py for what goes in and comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from limbeck_runtime.store.encoded import Array, Arrays, Encoded, narrowed, widened

# What rounds to infinity.
_LIMITS = {"float16": 65520.0, "float32": 3.4028235677973366e38}


@dataclass(frozen=True)
class EmbeddingCodec:
    """A vector a row, as float16, or as int8 with the scale of its row."""

    kind: ClassVar[str] = "embedding"
    version: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = ("",)
    part_dims: ClassVar[Mapping[str, int | None]] = {"": 2}
    fill: ClassVar[Mapping[str, float]] = {"": 0.0}
    dtype: Literal["float16", "int8"] = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "int8"):
            raise ValueError(f"dtype of an embedding codec must be float16 or int8, got {self.dtype!r}")

    def encode(self, arrays: Arrays) -> Encoded:
        return Encoded(_encode(arrays[""], self.dtype))

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> dict[str, Array]:
        return {"": _decode(encoded.columns).reshape(-1, *shape)}


@dataclass(frozen=True)
class FeatureCodec:
    """An array of any shape a row."""

    kind: ClassVar[str] = "feature"
    version: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = ("",)
    part_dims: ClassVar[Mapping[str, int | None]] = {"": None}
    fill: ClassVar[Mapping[str, float]] = {"": 0.0}
    dtype: Literal["float16", "float32", "int8"] = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32", "int8"):
            raise ValueError(f"dtype of a feature codec must be float16, float32 or int8, got {self.dtype!r}")

    def encode(self, arrays: Arrays) -> Encoded:
        return Encoded(_encode(arrays[""], self.dtype))

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> dict[str, Array]:
        return {"": _decode(encoded.columns).reshape(-1, *shape)}


def _encode(values: Array, dtype: str) -> dict[str, Array]:
    flat_RD = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
    if dtype == "int8":
        flat_RD = flat_RD.astype(np.float32, copy=False)
        scale_R = np.abs(flat_RD).max(axis=1, initial=0.0) / 127
        if not np.isfinite(scale_R).all():
            raise ValueError("values must be finite; the teacher's outputs overflowed or are broken")
        steps_R = np.where(scale_R > 0, scale_R, 1.0)
        codes_RD = np.rint(flat_RD / steps_R[:, None]).astype(np.int8)
        return {"values": codes_RD, "scale": scale_R.astype(np.float32)}
    # The extremes are numbers within the limit if all are; a NaN is either.
    limit = _LIMITS[dtype]
    if flat_RD.size and not (-limit < float(flat_RD.min()) and float(flat_RD.max()) < limit):
        raise ValueError(
            f"values must be finite and fit {dtype}; store them as float32, or look why the teacher overflows"
        )
    return {"values": narrowed(flat_RD) if dtype == "float16" else flat_RD.astype(np.float32, copy=False)}


def _decode(columns: Arrays) -> Array:
    values_RD = widened(columns["values"])
    if "scale" in columns:
        values_RD *= columns["scale"][:, None]
    return values_RD
