"""Packed rows against a reference that moves one bit at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck_runtime.store.bit_packing import bits_for, pack, row_bytes, unpack


def _packed_bit_by_bit(row: list[int], bits: int) -> bytes:
    packed = bytearray((len(row) * bits + 7) // 8)
    for index, value in enumerate(row):
        for bit in range(bits):
            if value >> bit & 1:
                packed[(index * bits + bit) // 8] |= 1 << (index * bits + bit) % 8
    return bytes(packed)


@st.composite
def _rows(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    bits = draw(st.integers(1, 32))
    count = draw(st.integers(1, 45))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    return bits, draw(st.lists(row, min_size=1, max_size=6))


@settings(deadline=None)
@given(_rows())
def test_any_width_packs_as_the_reference_and_comes_back(case: tuple[int, list[list[int]]]) -> None:
    bits, rows = case
    values = np.array(rows, np.int64)

    packed = pack(values, bits)

    assert [bytes(row) for row in packed] == [_packed_bit_by_bit(row, bits) for row in rows]
    assert np.array_equal(unpack(packed, bits, values.shape[1]), values)


@pytest.mark.parametrize("bits", [1, 7, 8, 17, 24, 25, 26, 31, 32])
def test_many_rows_take_another_way_to_the_same_values(bits: int) -> None:
    """Small and large inputs are unpacked differently; the same rows must come out."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (3000, 20))

    packed = pack(values, bits)

    assert np.array_equal(unpack(packed, bits, 20), values)
    assert np.array_equal(unpack(packed[:50], bits, 20), values[:50])
    assert bytes(packed[7]) == _packed_bit_by_bit(values[7].tolist(), bits)


@pytest.mark.parametrize(
    ("vocabulary", "bits"), [(1, 1), (2, 1), (3, 2), (32_000, 15), (131_072, 17), (131_073, 18), (151_936, 18)]
)
def test_a_vocabulary_takes_the_bits_that_tell_its_entries_apart(vocabulary: int, bits: int) -> None:
    assert bits_for(vocabulary) == bits
    assert row_bytes(20, bits) == -(-20 * bits // 8)


def test_no_rows_and_no_values_are_fine() -> None:
    assert unpack(pack(np.zeros((0, 20), int), 17), 17, 20).shape == (0, 20)
    assert unpack(pack(np.zeros((3, 0), int), 17), 17, 0).shape == (3, 0)


@pytest.mark.parametrize("value", [-1, 8, 2**40])
def test_a_value_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 7"):
        pack(np.array([[0, value]]), 3)


def test_a_wrong_width_is_refused() -> None:
    packed = pack(np.array([[1, 2, 3]]), 17)
    with pytest.raises(ValueError, match="bytes a row"):
        unpack(packed, 17, 4)
    with pytest.raises(ValueError, match="1 to 32"):
        pack(np.array([[1]]), 33)
