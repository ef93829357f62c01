"""Rows of small unsigned integers, each in exactly as many bits as it needs.

Value i of a row takes the bits [i * bits, (i + 1) * bits) of that row, least significant bit first; a row is padded to
whole bytes, so that any row can be read without its neighbours. 1 to 32 bits a value.

Shapes: N rows, K values a row, B bytes a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

MAX_BITS = 32
# Up to this many values, one gather beats a loop over the columns (measured: they cross at about 600 rows of 20).
_GATHER_VALUES = 12_000


def bits_for(num_values: int) -> int:
    """Bits that tell `num_values` values apart, at least one."""
    return max(1, (num_values - 1).bit_length())


def row_bytes(count: int, bits: int) -> int:
    """Bytes of a row of `count` values."""
    return (count * bits + 7) // 8


def pack(values_NK: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Pack each row; raises ValueError if a value does not fit. Shape (N, B)."""
    _check_bits(bits)
    num_rows, count = values_NK.shape
    if values_NK.size and (values_NK.min() < 0 or int(values_NK.max()) >> bits):
        raise ValueError(f"values to pack must be from 0 to {2**bits - 1}, got {values_NK.min()} to {values_NK.max()}")
    num_bytes = row_bytes(count, bits)
    # Words by columns: each step below then works on contiguous memory, over all rows at once.
    words_WN = np.zeros((max(1, -(-num_bytes // 8)), num_rows), np.uint64)
    columns_KN = values_NK.T.astype(np.uint64, order="C")
    for index in range(count):
        word, shift = divmod(index * bits, 64)
        words_WN[word] |= columns_KN[index] << np.uint64(shift)
        if shift + bits > 64:
            words_WN[word + 1] |= columns_KN[index] >> np.uint64(64 - shift)
    rows_NW = np.ascontiguousarray(words_WN.T).astype("<u8", copy=False)
    return np.ascontiguousarray(rows_NW.view(np.uint8)[:, :num_bytes])


def unpack(packed_NB: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint32]:
    """The values of each row, shape (N, K)."""
    _check_bits(bits)
    num_rows = len(packed_NB)
    if packed_NB.shape[1] != row_bytes(count, bits):
        raise ValueError(
            f"{count} values of {bits} bits take {row_bytes(count, bits)} bytes a row, got {packed_NB.shape[1]}"
        )
    if bits == 8:
        return packed_NB.astype(np.uint32)
    if num_rows * count <= _GATHER_VALUES:
        return _unpack_by_gather(packed_NB, bits, count)
    num_words = -(-packed_NB.shape[1] // 8)
    padded_NB = np.zeros((num_rows, num_words * 8), np.uint8)
    padded_NB[:, : packed_NB.shape[1]] = packed_NB
    words_WN = np.ascontiguousarray(padded_NB.view("<u8").T)
    values_KN = np.empty((count, num_rows), np.uint32)
    mask = np.uint64(2**bits - 1)
    for index in range(count):
        word, shift = divmod(index * bits, 64)
        value_N = words_WN[word] >> np.uint64(shift)
        if shift + bits > 64:
            value_N |= words_WN[word + 1] << np.uint64(64 - shift)
        values_KN[index] = value_N & mask
    return np.ascontiguousarray(values_KN.T)


def _unpack_by_gather(packed_NB: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint32]:
    """For each value the 4 (or, above 25 bits, 8) bytes in which it begins, then one shift."""
    window, positions, shifts_K = _gather_plan(bits, count)
    num_rows, num_bytes = packed_NB.shape
    padded_NB = np.zeros((num_rows, num_bytes + window), np.uint8)
    padded_NB[:, :num_bytes] = packed_NB
    windows_NK = padded_NB.take(positions, axis=1).view(f"<u{window}")
    windows_NK >>= shifts_K
    windows_NK &= windows_NK.dtype.type(2**bits - 1)
    return windows_NK.astype(np.uint32, copy=False)


@lru_cache(maxsize=64)
def _gather_plan(bits: int, count: int) -> tuple[int, npt.NDArray[np.intp], npt.NDArray[np.unsignedinteger]]:
    window = 4 if bits <= 25 else 8
    starts_K = np.arange(count) * bits
    positions = (starts_K[:, None] // 8 + np.arange(window)).reshape(-1)
    return window, positions, (starts_K % 8).astype(f"<u{window}")


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits of a packed value must be 1 to {MAX_BITS}, got {bits}")
