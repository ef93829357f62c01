"""The likeliest or the drawn classes of a distribution; see codec.py for what goes in and comes out.

Shapes: R rows, K kept, S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from limbeck_runtime.store import bit_packing
from limbeck_runtime.store.encoded import Array, Arrays, Encoded, widened

# The logarithm of probability zero: finite, so that 0 * log(0) is 0 without masks.
LOG_ZERO = -1e4
# A log-probability below this is a zero: what is between is not reached by float32 softmax outputs.
_ZERO_BELOW = LOG_ZERO / 2


@dataclass(frozen=True)
class TopKCodec:
    """The k most likely of `vocabulary` classes and the mass of the rest.

    With `value_bits` of 4 to 8, each value is its distance from the row's largest logarithm in steps of the row's own
    scale; with 16 it is a float16. Rows are normalised when read, so the scale of the row itself need not be stored.
    """

    kind: ClassVar[str] = "top_k"
    version: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = ("indices", "log_probs", "tail_log_mass")
    part_dims: ClassVar[Mapping[str, int | None]] = {"indices": 2, "log_probs": 2, "tail_log_mass": 1}
    fill: ClassVar[Mapping[str, float]] = {"indices": 0, "log_probs": LOG_ZERO, "tail_log_mass": LOG_ZERO}
    k: int
    vocabulary: int
    value_bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary:
            raise ValueError(
                f"k must be from 1 to the vocabulary of {self.vocabulary}, got {self.k}; do k=min(k, vocabulary)"
            )
        _check_vocabulary(self.vocabulary)
        if self.value_bits not in (4, 5, 6, 7, 8, 16):
            raise ValueError(f"value_bits must be 4 to 8, or 16, got {self.value_bits}")

    def encode(self, arrays: Arrays) -> Encoded:
        indices_RK, log_probs_RK = arrays["indices"], np.asarray(arrays["log_probs"], np.float32)
        tail_R = np.asarray(arrays["tail_log_mass"], np.float32)
        _check_indices(indices_RK, self.k, self.vocabulary)
        if np.isnan(log_probs_RK).any() or np.isnan(tail_R).any():
            raise ValueError(
                "log-probabilities must be numbers, got NaN; the teacher's outputs overflowed or are broken"
            )
        top_R = log_probs_RK.max(axis=1)
        if top_R.size and top_R.min() < _ZERO_BELOW:
            raise ValueError("each row must have a probability above zero")
        with np.errstate(over="ignore"):
            tail_gap_R = np.where(tail_R < _ZERO_BELOW, np.inf, top_R - tail_R).astype(np.float16)
        gaps_RK = top_R[:, None] - log_probs_RK
        columns: dict[str, Array] = {
            "indices": bit_packing.pack(indices_RK, bit_packing.bits_for(self.vocabulary)),
            "tail": tail_gap_R,
        }
        if self.value_bits == 16:
            with np.errstate(over="ignore"):
                gaps_RK[log_probs_RK < _ZERO_BELOW] = np.inf
                columns["values"] = gaps_RK.astype(np.float16)
            return Encoded(columns)
        scale_R, codes_RK = _quantize_gaps(gaps_RK, self.value_bits)
        columns["values"] = bit_packing.pack(codes_RK, self.value_bits)
        columns["scale"] = scale_R
        return Encoded(columns)

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> dict[str, Array]:
        columns = encoded.columns
        if self.value_bits == 16:
            log_RK = -widened(columns["values"])
        else:
            largest = 2**self.value_bits - 2
            codes_RK = bit_packing.unpack(columns["values"], self.value_bits, self.k)
            log_RK = codes_RK.astype(np.float32)
            log_RK *= (widened(columns["scale"]) / -largest)[:, None]
            log_RK[codes_RK > largest] = LOG_ZERO
        tail_R = -widened(columns["tail"])
        # The constraint that all mass is 1 gives back the row's level.
        level_R = np.log(np.exp(log_RK).sum(axis=1) + np.exp(tail_R))
        log_RK -= level_R[:, None]
        tail_R -= level_R
        np.maximum(log_RK, LOG_ZERO, out=log_RK)
        np.maximum(tail_R, LOG_ZERO, out=tail_R)
        indices_RK = bit_packing.unpack(columns["indices"], bit_packing.bits_for(self.vocabulary), self.k)
        return {"indices": indices_RK.view(np.int32), "log_probs": log_RK, "tail_log_mass": tail_R}


@dataclass(frozen=True)
class SampledCodec:
    """Classes drawn from the teacher's own distribution, each with the share of the draws that it got.

    Unbiased where top-k is not: the expected share is the probability, for every class (Sparse Logit Sampling,
    ACL 2025, with proposal temperature 1). Only classes that were drawn take space.
    """

    kind: ClassVar[str] = "sampled"
    version: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = TopKCodec.parts
    part_dims: ClassVar[Mapping[str, int | None]] = TopKCodec.part_dims
    fill: ClassVar[Mapping[str, float]] = TopKCodec.fill
    num_samples: int
    vocabulary: int

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocabulary)
        if not 1 <= self.num_samples <= 4096:
            raise ValueError(f"num_samples must be from 1 to 4096, got {self.num_samples}")

    def encode(self, arrays: Arrays) -> Encoded:
        indices_RS, log_probs_RS = arrays["indices"], arrays["log_probs"]
        _check_indices(indices_RS, None, self.vocabulary)
        counts_RS = np.rint(np.exp(log_probs_RS.astype(np.float64)) * self.num_samples).astype(np.int64)
        if (counts_RS.sum(axis=1) != self.num_samples).any():
            raise ValueError(
                f"shares of each row must be those of {self.num_samples} draws; take them from `sample_logits`"
            )
        used_RS = counts_RS > 0
        # One slot: the class in the low bits, the draws less one above them.
        slots = indices_RS[used_RS].astype(np.uint64) | (counts_RS[used_RS] - 1).astype(np.uint64) << np.uint64(
            self._index_bits
        )
        slot_bytes = slots.astype("<u8")[:, None].view(np.uint8)[:, : self._slot_bytes]
        return Encoded({}, np.ascontiguousarray(slot_bytes), used_RS.sum(axis=1).astype(np.int32))

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> dict[str, Array]:
        assert encoded.slots is not None
        assert encoded.slot_counts is not None
        words = np.zeros((len(encoded.slots), 8), np.uint8)
        words[:, : self._slot_bytes] = encoded.slots
        slots = words.view("<u8")[:, 0]
        counts_R = encoded.slot_counts
        width = int(counts_R.max(initial=1))
        used_RS = np.arange(width) < counts_R[:, None]
        indices_RS = np.zeros(used_RS.shape, np.int32)
        log_probs_RS = np.full(used_RS.shape, LOG_ZERO, np.float32)
        indices_RS[used_RS] = slots & np.uint64(2**self._index_bits - 1)
        draws = (slots >> np.uint64(self._index_bits)).astype(np.float32) + 1
        log_probs_RS[used_RS] = np.log(draws / self.num_samples)
        tail_R = np.full(len(counts_R), LOG_ZERO, np.float32)
        return {"indices": indices_RS, "log_probs": log_probs_RS, "tail_log_mass": tail_R}

    @property
    def _index_bits(self) -> int:
        return bit_packing.bits_for(self.vocabulary)

    @property
    def _slot_bytes(self) -> int:
        return bit_packing.row_bytes(1, self._index_bits + bit_packing.bits_for(self.num_samples))


def _quantize_gaps(gaps_RK: Array, bits: int) -> tuple[Array, Array]:
    """A scale per row and codes from 0 (no gap) to 2**bits - 2 (the largest); the code above means probability zero."""
    largest = 2**bits - 2
    is_zero_RK = gaps_RK > -_ZERO_BELOW
    any_zero = bool(is_zero_RK.any())
    finite_RK = np.where(is_zero_RK, 0, gaps_RK) if any_zero else gaps_RK
    scale_R = finite_RK.max(axis=1).astype(np.float16)
    steps_R = largest / np.maximum(scale_R.astype(np.float32), 1e-6)
    codes_RK = np.minimum(np.rint(finite_RK * steps_R[:, None]), largest).astype(np.uint8)
    if any_zero:
        codes_RK[is_zero_RK] = largest + 1
    return scale_R, codes_RK


def _check_indices(indices: Array, k: int | None, vocabulary: int) -> None:
    if k is not None and indices.shape[1] != k:
        raise ValueError(f"indices must have k = {k} a row, got {indices.shape[1]}")
    if indices.size and (indices.min() < 0 or indices.max() >= vocabulary):
        raise ValueError(
            f"indices must be below the vocabulary of {vocabulary}, got {indices.min()} to {indices.max()}"
        )


def _check_vocabulary(vocabulary: int) -> None:
    if not 1 <= vocabulary < 2**31:
        raise ValueError(f"vocabulary must be from 1 to 2**31 - 1, got {vocabulary}")
