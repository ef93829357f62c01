"""Samples of different lengths in flat and padded form."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck_runtime.store import Ragged
from limbeck_runtime.store.ragged import flat_positions

PADDED_NTD = np.array([[[1, 1], [2, 2], [0, 0]], [[0, 0], [0, 0], [0, 0]], [[3, 3], [4, 4], [5, 5]]])
LENGTHS_N = np.array([2, 0, 3])


def test_padding_is_dropped_and_put_back() -> None:
    ragged = Ragged.from_padded(PADDED_NTD, LENGTHS_N)

    assert ragged.values.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]
    assert np.array_equal(ragged.padded(0), PADDED_NTD)
    assert ragged.padded(-7)[0, 2].tolist() == [-7, -7]


def test_pieces_are_joined_in_order() -> None:
    ragged = Ragged.concatenate([Ragged(np.arange(3), np.array([1, 2])), Ragged(np.arange(3, 5), np.array([2]))])

    assert ragged.values.tolist() == [0, 1, 2, 3, 4]
    assert ragged.lengths.tolist() == [1, 2, 2]


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        Ragged(np.arange(3), np.array([1, 1]))
    with pytest.raises(ValueError, match="from 0 to 3"):
        Ragged.from_padded(PADDED_NTD, np.array([2, 0, 4]))


def test_positions_run_through_each_piece() -> None:
    starts, lengths = np.array([10, 50, 0]), np.array([3, 0, 2])
    assert flat_positions(starts, lengths).tolist() == [10, 11, 12, 0, 1]
