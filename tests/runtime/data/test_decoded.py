"""Decoded shards: ragged rows, the bound on their size, and breaking off."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.api.v1alpha1.data import DataFormat
from limbeck_runtime.data.decoded import Ragged, ShardDecoder, estimate_bytes
from limbeck_runtime.models.preprocessing import Preprocessing

_rows = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6)


@given(_rows, st.lists(st.integers(0, 5), max_size=8))
def test_ragged_rows_come_back_padded_with_their_lengths(rows: list[list[int]], wanted: list[int]) -> None:
    wanted = [row % len(rows) for row in wanted]
    ragged = Ragged.of([np.array(row, np.int32) for row in rows], np.int32)
    padded, lengths = ragged.padded(np.array(wanted, np.int64), fill=-1)
    longest = max((len(rows[row]) for row in wanted), default=0)
    assert padded.tolist() == [rows[row] + [-1] * (longest - len(rows[row])) for row in wanted]
    assert lengths.tolist() == [len(rows[row]) for row in wanted]
    assert [ragged.row(row).tolist() for row in wanted] == [rows[row] for row in wanted]


def test_the_estimate_from_the_index_is_never_below_what_a_shard_takes(
    builders: Any, preprocessing: Preprocessing
) -> None:
    texts = [b"word1", b" ".join([b"word2"] * 99), b'["word1 thing2", "a b c d e f g h i j k", "?"]']
    samples = {f"k{n}": builders.whole_sample(n) | {"txt": text} for n, text in enumerate(texts)}
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", samples).index()
    with ThreadPoolExecutor(1) as pool:
        shard = ShardDecoder(index, preprocessing, pool, None, lambda: False).decode(0)
    assert shard.num_bytes <= estimate_bytes(index.shards[0], preprocessing) <= 2 * shard.num_bytes


def test_decoding_breaks_off_when_it_is_told_to(builders: Any, preprocessing: Preprocessing) -> None:
    samples = {f"k{number:03d}": builders.whole_sample(number) for number in range(200)}
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", samples).index()
    asked: list[None] = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) == 2

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="closed"):
        ShardDecoder(index, preprocessing, pool, None, stopped).decode(0)
    assert len(asked) == 2
